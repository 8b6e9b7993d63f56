"""Pairs of boxes whose areas are confused, or whose overlap is not cut at 0; derivatives by a complex step."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes.elements import STEP
from refloss.testing.mistakes.guess import POSSIBLE, Guess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.cases.source import Case


class Areas(NamedTuple):
    """Of pairs of boxes: intersection, union, the box around both, and the intersection without a cut at 0."""

    inside: np.ndarray
    union: np.ndarray
    outer: np.ndarray
    uncut: np.ndarray


def _loss(is_giou: bool, areas: Areas) -> np.ndarray:
    """1 − IoU, or 1 − GIoU."""
    penalty = (areas.outer - areas.union) / areas.outer if is_giou else 0
    return np.asarray(1 - areas.inside / areas.union + penalty)


def _uncut(is_giou: bool, areas: Areas) -> np.ndarray:
    union = areas.union + areas.inside - areas.uncut
    return _loss(is_giou, areas._replace(inside=areas.uncut, union=union))


def _twice(is_giou: bool, areas: Areas) -> np.ndarray:
    return _loss(is_giou, areas._replace(union=areas.union + areas.inside))


def _outer_for_union(is_giou: bool, areas: Areas) -> np.ndarray:
    return _loss(is_giou, areas._replace(union=areas.outer))


def _outer_in_quotient(is_giou: bool, areas: Areas) -> np.ndarray:
    return np.asarray(_loss(is_giou, areas) + areas.inside / areas.union - areas.inside / areas.outer)


def _over_union(_: bool, areas: Areas) -> np.ndarray:
    return np.asarray(1 - areas.inside / areas.union + (areas.outer - areas.union) / areas.union)


def _union_for_outer(_: bool, areas: Areas) -> np.ndarray:
    return _loss(False, areas)


def _inside_for_union(_: bool, areas: Areas) -> np.ndarray:
    return np.asarray(1 - areas.inside / areas.union + (areas.outer - areas.inside) / areas.outer)


_ENCLOSING = "the enclosing box is taken for the union"
_OF_BOTH = (
    (_ENCLOSING, _outer_for_union),
    ("boxes are not clamped", _uncut),
    ("the intersection is counted twice in the union", _twice),
)
_OF_GIOU = (
    (_ENCLOSING, _outer_in_quotient),
    (_ENCLOSING, _over_union),
    ("the union is taken for the enclosing box", _union_for_outer),
    ("the intersection is taken for the union", _inside_for_union),
)


def of_boxes(case: Case) -> Iterator[Guess]:
    """Pairs of boxes whose areas are confused, or whose overlap is not cut at 0."""
    if case.function not in ("iou", "giou"):
        return
    is_giou = case.function == "giou"
    for mistake, formula in (_OF_GIOU if is_giou else ()) + _OF_BOTH:
        yield Guess(mistake, POSSIBLE, _pairs(case, functools.partial(formula, is_giou)))
    if not is_giou:
        yield Guess("GIoU for IoU", POSSIBLE, _pairs(case, functools.partial(_loss, True)))


def _pairs(case: Case, formula: Callable[[Areas], np.ndarray]) -> dict[str, np.ndarray]:
    boxes = [real(case.inputs[name]).astype(complex) for name in ("boxes1", "boxes2")]
    is_centre = case.parameters.get("box_format", "xyxy") == "cxcywh"
    reduction = case.parameters.get("reduction", "mean")
    rows = boxes[0][..., 0].size
    divisor = rows if reduction == "mean" else 1
    c = real(case.grad_output) / max(divisor, 1)

    def losses(*moved: np.ndarray) -> np.ndarray:
        return formula(_areas(*(_as_corners(box) if is_centre else box for box in moved)))

    value = losses(*boxes).real
    tensors = {"loss": value if reduction == "none" else np.asarray(value.sum() / divisor)}
    for side in (0, 1):
        gradient = np.zeros(boxes[side].shape)
        for k in range(4):
            moved = [box.copy() for box in boxes]
            moved[side][..., k] += STEP * 1j
            gradient[..., k] = c * losses(*moved).imag / STEP
        tensors[f"grad.boxes{side + 1}"] = gradient
    return tensors


def _as_corners(box: np.ndarray) -> np.ndarray:
    half = box[..., 2:] / 2
    return np.concatenate([box[..., :2] - half, box[..., :2] + half], axis=-1)


def _areas(a: np.ndarray, b: np.ndarray) -> Areas:
    low = np.where(a[..., :2].real > b[..., :2].real, a[..., :2], b[..., :2])
    high = np.where(a[..., 2:].real < b[..., 2:].real, a[..., 2:], b[..., 2:])
    outer_low = np.where(a[..., :2].real < b[..., :2].real, a[..., :2], b[..., :2])
    outer_high = np.where(a[..., 2:].real > b[..., 2:].real, a[..., 2:], b[..., 2:])
    raw = (high - low).prod(axis=-1)
    inside = np.where(high.real - low.real > 0, high - low, 0).prod(axis=-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b)]
    return Areas(inside, areas[0] + areas[1] - inside, (outer_high - outer_low).prod(axis=-1), raw)
