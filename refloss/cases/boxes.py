"""Golden cases of boxes and of sigmoids of masks and classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refloss.cases.elements import saturated_elements
from refloss.cases.formats import in_every_format, in_format
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
        *in_every_format(_of_boxes(function, seed)),
        *(in_format(_many_boxes(function, seed, count), name) for name, count in _MANY),
    ]


# In which format there are how many boxes: more than a block.
_MANY = (("float16", 1025), ("bfloat16", 4097), ("float32", 4097), ("float64", 1025))


def _of_boxes(function: str, seed: int) -> list[Case]:
    """Centres and sizes, by reduction; in multiples of 1/64, so that all formats have the same boxes."""
    source = Source(seed + 100)
    first, second = (np.round(64.0 * (0.25 + source.uniform(9, 4))) / 64.0 for _ in range(2))
    cotangents: dict[str, Any] = {"mean": -1.5, "sum": 2.0, "none": 2.0 * source.normal(9)}
    return [
        Case(
            f"{function}-options-{reduction}",
            function,
            {"boxes1": first, "boxes2": second},
            {"box_format": "cxcywh", "reduction": reduction},
            cotangent,
        )
        for reduction, cotangent in cotangents.items()
    ]


def _many_boxes(function: str, seed: int, count: int) -> Case:
    source = Source(seed + count)
    corners = [source.uniform(count, 2) for _ in range(2)]
    first, second = (np.concatenate([low, low + 0.25 + 0.5 * source.uniform(count, 2)], axis=1) for low in corners)
    cotangent = 2.0 * source.normal(count)
    inputs = {"boxes1": first, "boxes2": second}
    return Case(f"{function}-boxes-{count}", function, inputs, {"reduction": "none"}, cotangent)


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
        *_of_focus(function, 131, _FOCI),
        # Half of a float16's least number is nothing.
        *(in_format(_pair(function), name) for name in DTYPES if name != "float16"),
        *(in_format(_many(function, (shape[0], math.prod(shape[1:]))), name) for name, shape in _SHAPES),
    ]


# α and γ: without weights, with one that is not its own mirror image, and exponents to either side of 1.
_FOCI = ((0.5, 0.0), (0.75, 0.5), (0.25, 1.0), (-1.0, 2.0), (0.75, 5.0))
# In which format there is what shape: more elements than a block or a tile, and than an index of 16 bits tells apart.
_SHAPES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("float64", (3, 1025)),
    ("bfloat16", (2, 67, 131)),
    ("float16", (2, 67, 131)),
    ("float32", (257, 257)),
)
_TILED_MASKS = "float32", (2, 31, 67)


def _of_focus(function: str, seed: int, foci: tuple[tuple[float, float], ...]) -> list[Case]:
    """Logits that saturate on the side of their targets and on the other, and every option at once by reduction."""
    source = Source(seed)
    x, t = saturated_elements()
    cotangent = 2.0 * source.normal(*x.shape)

    def case(
        name: str, x: np.ndarray, t: np.ndarray, grad_output: Any, alpha: float, gamma: float, **given: Any
    ) -> Case:
        parameters = {"alpha": alpha, "gamma": gamma} | given
        return Case(f"{function}-{name}", function, {"inputs": x, "targets": t}, parameters, grad_output)

    plain = source.normal(4, 6) * 3.0, np.where(source.uniform(4, 6) < 0.5, np.round(source.uniform(4, 6)), 0.0)
    some: dict[str, Any] = {"num_boxes": 3.0}
    far = np.array([[720.0, -800.0, 720.0, -800.0]] * 3), np.array([[1.0, 0.0, 0.0, 1.0], [0.5] * 4, [0.0] * 4])
    beyond = case("beyond-exponentials", *far, cotangent[:3, :4], 0.5, 1.0, reduction="none")
    cases = [
        *(case(f"saturated-gamma-{gamma:g}", x, t, cotangent, alpha, gamma, reduction="none") for alpha, gamma in foci),
        case("options-mean", *plain, -2.5, 0.75, 0.5, **some),
        case("options-sum", *plain, 1.25, 0.75, 0.5, reduction="sum", **some),
        case("options-none", *plain, 2.0 * source.normal(4, 6), 0.375, 1.5, reduction="none", **some),
    ]
    return [*in_every_format(cases), in_format(beyond, "float64")]


def _pair(function: str) -> Case:
    """Logits on the side of their targets, whose missed probability is no difference from 1."""
    inputs = {"inputs": np.array([[18.0, -18.0]]), "targets": np.array([[1.0, 0.0]])}
    return Case(f"{function}-saturated-pair", function, inputs, {"alpha": 0.5, "gamma": 0.0, "reduction": "sum"}, 2.0)


def _many(function: str, shape: tuple[int, ...]) -> Case:
    """So many elements, with a gradient of each that a mean does not hide."""
    source, count = Source(132), int(np.prod(shape))
    x, t = source.uniform(*shape) * 12.0 - 6.0, np.where(source.uniform(*shape) < 0.3, source.uniform(*shape), 0.0)
    inputs = {"inputs": x, "targets": t}
    return Case(f"{function}-elements-{count}", function, inputs, {}, 1.5 * shape[1])


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
        *in_every_format(_of_masks(function)),
        *(in_format(_many(function, shape), name) for name, shape in (*_SHAPES, _TILED_MASKS)),
    ]


def _of_masks(function: str) -> list[Case]:
    """Every option at once by reduction, and logits that saturate on either side."""
    source = Source(133)
    plain = {"inputs": source.normal(3, 5, 7) * 3.0, "targets": np.round(source.uniform(3, 5, 7))}
    plain["targets"][1] = source.uniform(5, 7) * 0.25
    x, t = saturated_elements()
    options = {"num_boxes": 2.5}
    return [
        Case(f"{function}-options-sum", function, plain, options, -40.0),
        Case(
            f"{function}-options-none", function, plain, options | {"reduction": "none"}, np.array([24.0, -16.0, 40.0])
        ),
        Case(f"{function}-saturated", function, {"inputs": x, "targets": t}, {}, -100.0),
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
        *_of_focus(function, 135, tuple((abs(alpha), gamma) for alpha, gamma in _FOCI)),
        *(in_format(_many(function, (shape[0], math.prod(shape[1:]))), name) for name, shape in _SHAPES),
    ]
