"""Cases of losses of a linear layer's outputs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from refloss.cases.draws import Draws


def draw_linear_cross_entropy(draws: Draws) -> Drawn:
    """Rows of labels, some of which are ignored, or distributions; with and without what may be left out."""
    rows, features, classes = draws.rows(), draws.few_classes(), draws.classes()
    parameters = draws.options(
        ignore_index=(-100, 0, 255),
        reduction=("mean", "sum", "none"),
        label_smoothing=(0.0, 0.1, 1.0),
        logit_scale=(1.0, 0.0625, -1.5),
        softcap=(30.0, 1.5),
        temperature=(1.0, 0.7, 3.0),
        z_loss=(0.0, 1e-4, 0.5),
    )
    inputs: dict[str, Any] = {
        "input": draws.logits(rows, features, near=draws.limits.exact),
        "linear_weight": draws.cast(draws.noise(classes, features)),
    }
    if np.abs(inputs["input"].astype(np.float64)).max(initial=0.0) < 1e3:
        parameters |= draws.options(logits_dtype=("bfloat16", "float16", "float32"))
    if draws.maybe():
        values = draws.uniform(rows, classes) + 0.01
        inputs["target"] = draws.cast(values / values.sum(axis=1, keepdims=True))
        parameters.pop("ignore_index", None)
    else:
        labels = (draws.uniform(rows) * classes).astype(np.int64)
        inputs["target"] = np.where(
            draws.uniform(rows) < draws.one_of(0.0, 0.25, 0.75), parameters.get("ignore_index", -100), labels
        )
    if draws.maybe():
        inputs["linear_bias"] = draws.cast(draws.noise(classes))
    if draws.maybe():
        inputs["weight"] = draws.weights(classes)
    return Drawn(inputs, parameters, (rows,))


def has_labels(case: Case) -> bool:
    """Whether the target are labels."""
    return case.inputs["target"].dtype.kind in "iu"


def divisor(case: Case) -> float | None:
    """What a mean divides by."""
    if case.parameters.get("reduction", "mean") != "mean":
        return None
    target, rows = case.inputs["target"], case.inputs["input"].reshape(-1, case.inputs["input"].shape[-1])
    if not has_labels(case):
        return float(len(rows))
    known = target[target != case.parameters.get("ignore_index", -100)]
    weight = case.inputs.get("weight")
    return float(known.size if weight is None else weight.astype(np.float64)[known].sum())


def _case(name: str, x: np.ndarray, w: np.ndarray, target: Any, **given: Any) -> Case:
    dtype, grad_output = given.pop("dtype", np.float32), given.pop("grad_output", 1.0)
    inputs = {"input": x.astype(dtype), "linear_weight": w.astype(dtype), "target": np.asarray(target)}
    for optional in ("linear_bias", "weight"):
        if optional in given:
            inputs[optional] = given.pop(optional).astype(dtype)
    return Case(f"linear_cross_entropy-{name}", "linear_cross_entropy", inputs, given, grad_output)


def linear_cross_entropy(_: str) -> list[Case]:
    """Layers as they are trained, and those whose logits are sure, cancel, or are written down in few bits."""
    source = Source(401)
    x, w = source.normal(7, 12), source.normal(11, 12)
    labels, bias, weight = source.integers(11, 7), source.normal(11), source.uniform(11) + 0.25
    ignored = np.where(np.arange(7) % 3 == 1, -100, labels)
    cotangent = source.normal(7) * (-1.0) ** np.arange(7)
    soft = source.probabilities(7, 11).astype(np.float32)
    # Rows that point where their label's weights do.
    sure = x + np.array([0.0, 2.0, 4.0, 8.0, 16.0, 3.0, 1.0])[:, None] * w[labels]
    # Features of any size, all of which count.
    scales = 2.0 ** np.array([0, 10, -10, 20, -20, 5, -5, 15, -15, 1, 0, -1])
    everything = {"linear_bias": bias, "weight": weight, "label_smoothing": 0.1}
    chain = {"logit_scale": 0.5, "softcap": 3.0, "temperature": 0.7, "z_loss": 0.01}
    return [
        *(
            _case(f"{name}-mean", x, w, ignored, dtype=dtype, linear_bias=bias, grad_output=-0.75)
            for name, dtype in DTYPES.items()
        ),
        *(
            _case(f"{name}-none", x, w, ignored, dtype=dtype, reduction="none", grad_output=cotangent)
            for name, dtype in DTYPES.items()
        ),
        _case("sum", x, w, labels, reduction="sum", grad_output=0.3),
        _case("weighted-smoothed", x, w, ignored, **everything, grad_output=-2.5),
        _case("weighted-smoothed-none", x, w, ignored, **everything, reduction="none", grad_output=cotangent),
        _case("probabilities", x, w, soft, linear_bias=bias, grad_output=0.7),
        _case("probabilities-weighted-smoothed", x, w, soft, **everything, reduction="sum", grad_output=-1.25),
        _case("chain", x, w, ignored, **chain, grad_output=3.0),
        _case(
            "chain-none",
            x,
            w,
            labels,
            linear_bias=bias,
            weight=weight,
            **chain,
            reduction="none",
            grad_output=cotangent,
        ),
        _case("sure", sure, w, labels, reduction="sum", grad_output=1e3),
        _case("scaled-features", x * scales, w / scales, labels, grad_output=2.0),
        _case("one-row", x[0], w, int(labels[0]), grad_output=-1.0),
        _case("ignore-a-class", x, w, labels, ignore_index=int(labels[2]), grad_output=-0.5),
        _case("all-ignored", x, w, np.full(7, -100)),
        *in_every_format(_of_options(x, w, ignored)),
        *_of_sizes(source),
    ]


def _of_options(x: np.ndarray, w: np.ndarray, labels: np.ndarray) -> list[Case]:
    """Each option where it matters in any format."""
    source, each = Source(402), partial(_case, dtype=np.float64)
    soft, opposed = source.probabilities(7, 11), 2.0 * source.normal(7)
    given = {"linear_bias": 3.0 * source.normal(11), "weight": source.uniform(11) * 4.0 + 0.25}
    chain = {"logit_scale": -1.5, "softcap": 2.5, "temperature": 0.25}
    return [
        each("options-mean", x, w, labels, **given, label_smoothing=0.6, grad_output=-2.5),
        each("options-ignored", x, w, np.where(labels < 0, 5, labels), ignore_index=5, reduction="sum"),
        each("options-chain", x, w, labels, **chain, z_loss=0.5, reduction="none", grad_output=opposed),
        each("options-probabilities", x, w, soft, **given, reduction="none", grad_output=opposed),
        each("options-written", 3.0 * x, w, labels, logits_dtype="bfloat16", grad_output=-1.5),
        each("options-written-narrowly", 3.0 * x, w, labels, logits_dtype="float16", reduction="sum"),
    ]


def _of_sizes(source: Source) -> list[Case]:
    """Enough terms for sums in few bits to show."""
    x, w = source.normal(40, 96), 0.25 * source.normal(300, 96)
    labels = np.where(np.arange(40) % 5 == 0, -100, source.integers(300, 40))
    cotangent = source.normal(40)
    return [
        _case("many-bfloat16", x, w, labels, dtype=ml_dtypes.bfloat16, grad_output=40.0),
        _case("many-none", x, w, labels, reduction="none", grad_output=cotangent),
    ]
