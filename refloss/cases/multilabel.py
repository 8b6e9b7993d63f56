"""Cases of rows whose classes do not exclude each other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.elements import saturated_elements
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from refloss.cases.draws import Draws


def draw_rows(draws: Draws) -> Drawn:
    """Rows [..., C] with a target for each class, and a weight of each, or of each element."""
    parameters = draws.options(reduction=("mean", "sum", "none"))
    rows = draws.row_shape()
    rows = rows[:1] if draws.limits.exact else rows
    shape = (*rows, draws.classes())
    tensors = {"input": draws.logits(*shape), "target": draws.probabilities(*shape, ends=True)}
    if draws.maybe():
        of_rows = draws.limits.exact or draws.maybe()
        tensors["weight"] = draws.weights(*(shape if of_rows else shape[-1:]))
    return Drawn(tensors, parameters, rows)


def _case(function: str, name: str, x: np.ndarray, t: np.ndarray, **given: Any) -> Case:
    grad_output, dtype = given.pop("grad_output", 1.0), given.pop("dtype", np.float32)
    inputs = {"input": x.astype(dtype), "target": t.astype(dtype)}
    if "weight" in given:
        inputs["weight"] = given.pop("weight").astype(np.float64 if dtype == np.float64 else np.float32)
    return Case(f"{function}-{name}", function, inputs, given, grad_output)


def multilabel_soft_margin(function: str) -> list[Case]:
    """Hard and soft targets, weights of classes and of elements, rows along several axes or none."""
    case, source = partial(_case, function), Source(303)
    x, t, cotangent = source.normal(4, 7) * 2.0, source.uniform(4, 7), source.normal(4)
    weight, hard = source.uniform(7) * 2.0 + 0.25, np.round(t)
    far, far_target = saturated_elements()
    options = [
        case(f"options-{name}", far, far_target, dtype=np.float64, weight=weight, reduction=name, grad_output=upstream)
        for name, upstream in (("mean", -2.5), ("sum", 1.75), ("none", source.normal(7) * 2.0))
    ]
    image = source.normal(2, 3, 5)
    return [
        *(case(f"{name}-mean", x, t, dtype=dtype, grad_output=-0.75) for name, dtype in DTYPES.items()),
        case("sum", x, hard, reduction="sum", grad_output=0.3),
        case("none", x, t, reduction="none", grad_output=cotangent),
        case("float64-none", x, t, dtype=np.float64, reduction="none", grad_output=cotangent),
        case("weighted", x, t, weight=weight, grad_output=1.25),
        case("weighted-elements", x, hard, weight=source.uniform(4, 7) + 0.5, reduction="sum", grad_output=-1.25),
        case("one-row", x[0], t[0], grad_output=2.0),
        case("axes", image, np.round(source.uniform(2, 3, 5)), reduction="none", grad_output=source.normal(2, 3)),
        case("confident", x * 40.0, hard, grad_output=1e3),
        *in_every_format(options),
        *(
            in_format(case(f"classes-{size}", source.normal(3, size) * 3.0, source.uniform(3, size), **more), name)
            for name, size, more in (("float32", 1025, {"grad_output": -3e3}), ("bfloat16", 131, {"grad_output": 4e2}))
        ),
    ]
