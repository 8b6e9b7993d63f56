"""How far honest overlaps of boxes, and their gradients, may be from the exact ones.

Boxes as corners are exact, and so is which of two coordinates is the larger. With areas A₁ and A₂, intersection I (h_I
high), union U, the box around both E (h_E high) and the first box h₁ high, an x coordinate's derivative has the terms

    IoU   h_I/U + I·(h₁ + h_I)/U²
    GIoU  the same and (h₁ + h_I)/E + U·h_E/E²

each with k roundings (BOX_STEPS); the union, a difference, is at least half of its terms. A value is made of I/U, and
of U/E, with as many roundings, and of differences with 1.

Boxes as centre and size become corners first, each with an error of u of itself. What it does to a value is the
derivative with respect to the corners of both boxes, and what it does to a gradient is that of the gradient, taken here
by differences of the oracle's float64 over as much as coordinates are off; a kink nearby is no slope, but at most a
jump to its other side.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.bound import Bound, whole
from refloss.registry import FUNCTIONS
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult

# Roundings between a box's coordinates and its gradient.
BOX_STEPS = 16
# Of a loss in [0, 2] that is a difference with 1.
OF_LOSS = 2
_STEP = 1e-7


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sides of the first box, the intersection and the box around both, and areas of the union and of the last two."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    size, other_size = boxes[:, 2:] - boxes[:, :2], others[:, 2:] - others[:, :2]
    both = np.maximum(np.minimum(boxes[:, 2:], others[:, 2:]) - low, 0.0)
    around = np.maximum(boxes[:, 2:], others[:, 2:]) - np.minimum(boxes[:, :2], others[:, :2])
    intersection, enclosing = (sizes.prod(axis=1, keepdims=True) for sizes in (both, around))
    union = size.prod(axis=1, keepdims=True) + other_size.prod(axis=1, keepdims=True) - intersection
    return size, both, around, intersection, enclosing, union


def _size(kind: str, boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The magnitudes of the quotients that a value is made of; of no area, 1."""
    _, _, _, intersection, enclosing, union = _overlap(boxes, others)
    size = intersection / union + (union / enclosing if kind == "giou" else 0.0)
    return np.asarray(np.nan_to_num(size[:, 0], nan=1.0, posinf=1.0))


def _terms(kind: str, boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The magnitudes of the terms of a corner's derivative, along x and y."""
    size, both, around, intersection, enclosing, union = _overlap(boxes, others)
    across, height, enclosing_height = both[:, ::-1], size[:, ::-1], around[:, ::-1]
    terms = across / union + intersection * (height + across) / union**2
    if kind == "giou":
        terms = terms + (height + across) / enclosing + union * enclosing_height / enclosing**2
    return np.asarray(terms)


def pair_bounds(
    kind: str, boxes: np.ndarray, others: np.ndarray, unit: Roundoff, *, centered: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs [N, 4]: the error of what each loss takes from 1, and of its derivative for the first box."""
    corners = (_corners(boxes), _corners(others)) if centered else (boxes, others)
    terms = _terms(kind, *corners)
    value = BOX_STEPS * unit.between * _size(kind, *corners)
    gradient = BOX_STEPS * unit.between * np.tile(terms, 2)
    if not centered:
        return value, gradient
    # A corner is one difference or sum: of its coordinates' magnitudes, u.
    rounding = [unit.between * np.abs(each) for each in corners]
    slopes = _gradients(kind, *corners)
    value += sum((off * np.abs(slope)).sum(axis=1) for off, slope in zip(rounding, slopes, strict=True))
    # A centre's derivative is the sum of two corners', a size's half their difference.
    gradient *= np.repeat([2.0, 1.0], 2)
    for which, k in itertools.product(range(2), range(4)):
        # Over as much as the coordinate is off: a kink that lies there counts with all of its jump.
        step = np.maximum(rounding[which][:, k], _STEP)
        ends = [_centered(_moved(kind, corners, which, k, side * step)) for side in (1, -1)]
        gradient += np.abs(ends[0] - ends[1]) * (rounding[which][:, k] / step)[:, None]
    return value, gradient


def _gradients(kind: str, boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those with respect to the corners of both boxes."""
    gradients = FUNCTIONS[kind].call(boxes, others, box_format="xyxy", reduction="sum").grads
    return gradients["boxes1"], gradients["boxes2"]


def _moved(kind: str, corners: tuple[np.ndarray, np.ndarray], which: int, k: int, step: np.ndarray) -> np.ndarray:
    """The gradient of the first boxes' corners, where a coordinate of one of the two is moved."""
    moved = [each.copy() for each in corners]
    moved[which][:, k] += step
    moved[which][:, 2:] = np.maximum(moved[which][:, 2:], moved[which][:, :2])
    return _gradients(kind, *moved)[0]


def _centered(gradient: np.ndarray) -> np.ndarray:
    """A gradient of corners as one of centre and size."""
    low, high = gradient[:, :2], gradient[:, 2:]
    return np.concatenate([low + high, (high - low) / 2], axis=1)


def overlap(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """iou and giou."""
    boxes1, boxes2 = (real(case.inputs[name]).reshape(-1, 4) for name in ("boxes1", "boxes2"))
    shape = case.inputs["boxes1"].shape
    reduction, centered = case.parameters.get("reduction", "mean"), case.parameters.get("box_format") == "cxcywh"
    value, first = pair_bounds(case.function, boxes1, boxes2, unit, centered=centered)
    value = value + OF_LOSS * unit.between
    second = pair_bounds(case.function, boxes2, boxes1, unit, centered=centered)[1]
    divisor = float(len(value)) if reduction == "mean" else 1.0
    cotangent = np.broadcast_to(np.abs(real(case.grad_output)).reshape(-1), len(value))[:, None]
    coefficient, lost = cotangent / divisor, unit.tiny * (1.0 + cotangent)
    terms = STEPS * unit.between + unit.sum(len(value))
    loss = value.reshape(shape[:-1])
    if reduction != "none":
        loss = np.asarray((value.sum() + terms * 2 * len(value)) / divisor)
    return {
        "loss": whole(loss),
        "grad.boxes1": whole((coefficient * first + lost).reshape(shape)),
        "grad.boxes2": whole((coefficient * second + lost).reshape(shape)),
        f"intermediate.{case.function}": whole(value.reshape(shape[:-1])),
    }
