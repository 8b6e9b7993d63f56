"""Golden cases of boxes and of sigmoids of masks and classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss.cases.source import DTYPES, Case, Source


def boxes_of(source: Source, *shape: int) -> np.ndarray:
    """Centres and sizes; coordinates of some 20 bits, so that every format but the 16-bit ones holds them."""
    centers, sizes = source.uniform(*shape, 2), 0.05 + 0.5 * source.uniform(*shape, 2)
    rounded: np.ndarray = np.concatenate([centers, sizes], axis=-1).astype(np.float32).astype(np.float64)
    return rounded


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)


def overlaps(function: str, *, seed: int) -> list[Case]:
    """Pairs of boxes: in general, and where they touch, nest, coincide, are far apart or have no area."""
    source = Source(seed)
    first, second = boxes_of(source, 7), boxes_of(source, 7)
    unit = np.array([[0.0, 0.0, 1.0, 1.0]])
    special = {
        "identical": unit,
        "touching": np.array([[1.0, 0.0, 2.0, 1.0]]),
        "touching-corner": np.array([[1.0, 1.0, 2.0, 2.0]]),
        "inside": np.array([[0.25, 0.25, 0.5, 0.75]]),
        "apart": np.array([[3.0, 4.0, 5.0, 5.5]]),
        "no-area": np.array([[0.5, 0.5, 0.5, 0.75]]),
    }
    cotangent = source.normal(7)

    def case(name: str, a: np.ndarray, b: np.ndarray, grad_output: Any = -1.5, **parameters: Any) -> Case:
        return Case(f"{function}-{name}", function, {"boxes1": a, "boxes2": b}, parameters, grad_output)

    return [
        *(case(name, _corners(first).astype(dtype), _corners(second).astype(dtype)) for name, dtype in DTYPES.items()),
        case("centers", first.astype(np.float32), second.astype(np.float32), box_format="cxcywh"),
        case("sum", first, second, 2.0, box_format="cxcywh", reduction="sum"),
        case("none", first, second, cotangent, box_format="cxcywh", reduction="none"),
        *(case(name, unit, other, 0.75) for name, other in special.items()),
    ]


def sigmoid_focal(function: str) -> list[Case]:
    """Targets that are hard or soft, and other α and γ."""
    source = Source(31)
    logits = source.normal(4, 7) * 4.0
    hard, soft = (source.uniform(4, 7) < 0.3).astype(np.float32), source.uniform(4, 7).astype(np.float32)
    cotangent = source.normal(4, 7)

    def case(
        name: str, targets: np.ndarray = hard, dtype: Any = np.float32, grad_output: Any = -2.0, **parameters: Any
    ) -> Case:
        inputs = {"inputs": logits.astype(dtype), "targets": targets}
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("sum", reduction="sum", num_boxes=3.0),
        case("none", reduction="none", grad_output=cotangent),
        case("soft", soft, num_boxes=2.0),
        case("soft-gamma", soft, gamma=1.5, alpha=0.6, reduction="sum"),
        case("no-alpha", alpha=-1.0),
        case("no-gamma", gamma=0.0, grad_output=0.5),
    ]


def dice(function: str) -> list[Case]:
    """Masks that are hard, soft, empty and full."""
    source = Source(32)
    logits = source.normal(3, 5, 6) * 4.0
    hard, soft = (source.uniform(3, 5, 6) < 0.4).astype(np.float32), source.uniform(3, 5, 6).astype(np.float32)

    def case(
        name: str, targets: np.ndarray = hard, dtype: Any = np.float32, grad_output: Any = -2.0, **parameters: Any
    ) -> Case:
        inputs = {"inputs": logits.astype(dtype), "targets": targets}
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    confident = np.where(hard > 0, 60.0, -60.0).astype(np.float32)
    return [
        *(case(name, dtype=dtype) for name, dtype in DTYPES.items()),
        case("boxes", num_boxes=4.0),
        case("none", reduction="none", grad_output=source.normal(3)),
        case("soft", soft, grad_output=0.5),
        case("empty-target", np.zeros_like(hard)),
        case("full-target", np.ones_like(hard)),
        Case(f"{function}-confident", function, {"inputs": confident, "targets": hard}, {}, 1e6),
    ]


def varifocal(function: str) -> list[Case]:
    """Qualities that are soft, perfect and learnt."""
    source = Source(35)
    logits = source.normal(4, 7) * 4.0
    positive = source.uniform(4, 7) < 0.4
    targets = (source.uniform(4, 7) * positive).astype(np.float32)

    def case(
        name: str,
        dtype: Any = np.float32,
        grad_output: Any = -2.0,
        x: np.ndarray = logits,
        t: np.ndarray = targets,
        **parameters: Any,
    ) -> Case:
        inputs = {"inputs": x.astype(dtype), "targets": t.astype(np.float32)}
        return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

    return [
        *(case(name, dtype) for name, dtype in DTYPES.items()),
        case("sum", reduction="sum", num_boxes=3.0),
        case("none", reduction="none", grad_output=source.normal(4, 7)),
        case("other-focus", alpha=0.25, gamma=1.5, grad_output=0.5),
        case("no-focus", alpha=1.0, gamma=0.0),
        case("nothing-meant", t=np.zeros((4, 7)), grad_output=0.25),
        case("perfect-boxes", t=positive, grad_output=-0.75),
        # The gradient where a class has learnt its quality is what float32 cannot tell from 0.
        case("learnt", x=np.where(positive, np.log(targets / (1.0 - targets) + ~positive), logits), grad_output=1e3),
        case("confident", x=logits * 25.0, grad_output=1e3),
        case("trailing-axes", x=logits.reshape(2, 2, 7), t=targets.reshape(2, 2, 7)),
    ]
