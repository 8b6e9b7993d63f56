"""Multi-label margin loss: every target should lead all other classes by 1; see losses/parts/class_margins.py.

Torch counterpart: torch.nn.functional.multilabel_margin_loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays
from refloss.cases import vectors as cases
from refloss.cases.draws import Drawn
from refloss.error_model import vectors as error_model
from refloss.loss import loss
from refloss.losses.parts.class_margins import LOOP
from refloss.losses.parts.vectors import REDUCTIONS, loss_of_vectors, vector_array
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Specification, indices, vectors
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

if TYPE_CHECKING:
    from refloss.cases.draws import Draws
    from refloss.cases.source import Case
    from refloss.error_model.bound import Bound
    from refloss.roundoff import Roundoff

_MARGIN = 1.0


def _draw(draws: Draws) -> Drawn:
    """Targets are a few classes, some of them named twice, up to a −1; what is behind it does not count."""
    rows, classes = draws.row_shape(0, 1), draws.classes()
    target = (draws.uniform(*rows, classes) * classes).astype(np.int64)
    last = draws.size(0, min(classes, 4))
    target[..., last : last + 1] = -1
    x = draws.logits(*rows, classes)
    return Drawn({"input": x, "target": draws.integers(target)}, draws.parameters(REDUCTION), rows)


def _mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Every class that is there for a target, in its order."""
    target = case.inputs["target"]
    rows = np.full(target.shape, -1).reshape(-1, target.shape[-1] if target.ndim else 1)
    for row, named in zip(rows, target.reshape(rows.shape), strict=True):
        classes = named[named >= 0]
        row[: len(classes)] = classes
    return {"what follows a −1 counts as well": {"target": rows.reshape(target.shape)}}


def _bounds(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    target = case.inputs["target"]
    targets = target.reshape(-1, target.shape[-1] if target.ndim else 1).astype(np.int64)
    return error_model.class_margins(case, targets, np.ones(len(targets)), unit, margin=_MARGIN, p=1)


def _named(target: np.ndarray, classes: int) -> np.ndarray:
    """Rows of targets [R, K], no longer than the longest."""
    rows = target.reshape(-1, classes).astype(np.int64)
    counts = np.cumsum(rows < 0, axis=1) == 0
    return np.ascontiguousarray(rows[:, : int(counts.sum(axis=1).max(initial=0)) + 1])


@loss(
    Specification(
        arguments={"input": vectors("N C|C"), "target": indices("N C|C")},
        parameters=REDUCTION,
        mean="rows",
        per="row",
        order=142,
        follows="torch.nn.functional.multilabel_margin_loss",
        cases=cases.multilabel_margin,
        draw=_draw,
        bounds=_bounds,
        mistakes=_mistakes,
        intermediates=("losses",),
    )
)
def multilabel_margin(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Multi-label margin loss, as torch.nn.functional.multilabel_margin_loss.

    ℓ_r = Σ_k Σ_j max(0, z_kj)/C with z_kj = 1 − x_k + x_j, over the targets k of a row and the classes j that are no
    targets; "mean" divides the sum by the number of rows. With c = grad_output over that, over C: ∂/∂x_j = c·Σ_k
    [z_kj > 0], ∂/∂x_k = −c·Σ_j [z_kj > 0]. Held constant: nothing.

    Args:
        input: logits [N, C], or [C]; any float dtype and layout.
        target: of the same shape, any signed integer dtype: the classes that a row should have, up to the first −1;
            what follows it does not count. A class that is named twice counts twice.
        reduction: "mean", "sum" or "none".
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss in units of the input. grads: "input". intermediates: "losses" of the rows.

    Edges:
        z = 0: no gradient, as torch has it. z is NaN: neither loss nor gradient, as torch has it. No targets: 0. No
        rows: "mean" is NaN.

    Raises:
        ValueError: a shape, a label (behind a −1, too), an option or a buffer that does not fit. TypeError: a dtype
        that does not.
    """
    arrays.choice(reduction, "reduction", REDUCTIONS)
    x = vector_array(input, "input", "[N, C] or [C] with at least one class")
    classes, labels = x.shape[-1] if x.ndim else 1, arrays.integer_array(target, "target")
    arrays.check_shape(labels, x.shape, "target", "the shape of input")
    arrays.check_range(labels, -1, classes - 1, "target")
    return loss_of_vectors(
        LOOP,
        {"input": x},
        Options(grad_output, grad, grad_dtype, out, backend),
        row_shape=x.shape[:-1],
        parameters=(_MARGIN, 1.0),
        labels=_named(labels, classes),
        divisor=float(classes),
        reduction=reduction,
    )
