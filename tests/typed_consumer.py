"""What somebody may write who has a type checker: test_types.py has mypy --strict read it, and runs it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

import refloss

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refloss.typing import ArrayLike, Cotangent, Reduction


class Exported:
    """An array of another framework, which NumPy takes by DLPack."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._values = values

    def __dlpack__(self, *, stream: object = None, max_version: tuple[int, int] | None = None) -> object:
        return self._values.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


def squares(x: ArrayLike, t: ArrayLike, reduction: Reduction, upstream: Cotangent = 1.0) -> refloss.LossResult:
    return refloss.mse(x, t, reduction=reduction, grad_output=upstream)


def distance(loss: float, other: float) -> float:
    return abs(loss - other)


def of_language() -> None:
    logits = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(2, 3, 4)
    labels = np.array([[0, 1, 2], [3, 2, -100]])
    result = refloss.causal_lm(logits, labels, grad_output=2.0, backend="cpu", grad_dtype="bfloat16")
    assert result.loss + 1 > 1.0
    assert distance(result.loss, result.loss.item()) < 1e-9
    assert abs(result.loss - float(result.loss)) < 1e-9
    assert math.isfinite(result.loss)
    assert result.grads["logits"].shape == logits.shape
    assert result.intermediates["lse"].shape == labels.shape
    several = refloss.causal_lm(
        logits, labels, z_loss=0.1, grad_output={"cross_entropy": 1.0, "z_loss": 0.5}, grad=["logits"]
    )
    assert several.components["z_loss"] > 0.0
    answers = refloss.question_answering(logits[:, 0], logits[:, 1], [1, 2], [3, 0], num_items_in_batch=np.int64(2))
    assert answers is not None
    assert answers.loss > 0.0
    assert refloss.LOSS_MAPPING["ForMaskedLM"](logits=logits, labels=labels, vocab_size=4).loss > 0.0


def of_elements() -> None:
    x = np.array([1.0, 2.5])
    losses = np.asarray(squares(x, [0.5, 2], "none", upstream=[1.0, -2.0]).loss)
    assert losses[0] == 0.25
    for given in (x, x.tolist(), (1.0, np.float32(2.5)), Exported(x), refloss.mse(x, x + 1).grads["input"] + 1.5 + x):
        assert squares(given, x, "mean").grads["input"].dtype == np.float64
    out = np.empty_like(x)
    assert refloss.huber(x, x, weight=[1.0, 2.0], out=out, reduction="sum", grad="input").grads["input"] is out
    assert squares(1.0, 3, "sum").loss == 4.0


def of_objects() -> None:
    logits, boxes = np.zeros((1, 2, 3)), np.array([[[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.2, 0.1]]])
    factors = dict.fromkeys(("class_cost", "bbox_cost", "giou_cost"), 1.0)
    factors |= {"bbox_loss_coefficient": 5.0, "giou_loss_coefficient": 2.0, "eos_coefficient": 0.1}
    config = {**factors, "num_labels": 2, "auxiliary_loss": False}
    labels = [{"class_labels": np.array([1]), "boxes": boxes[0, :1]}]
    result = refloss.object_detection(logits, labels, boxes, config)
    again = refloss.object_detection(logits, labels, boxes, config, assignment=result.intermediates)
    given = refloss.object_detection(logits, labels, boxes, config, assignment=[[(np.array([0]), np.array([0]))]])
    assert result.loss == again.loss == given.loss


def main() -> None:
    of_language()
    of_elements()
    of_objects()
    assert refloss.get_num_threads() > 0
    assert len(refloss.__version__.split(".")) == 3


if __name__ == "__main__":
    main()
