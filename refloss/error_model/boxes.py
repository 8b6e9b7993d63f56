"""How far honest overlaps of boxes, and their gradients, may be from the exact ones.

Boxes as corners are exact, and so is which of two coordinates is the larger. With areas A₁ and A₂, intersection I (h_I
high), union U, the box around both E (h_E high) and the first box h₁ high, an x coordinate's derivative has the terms

    IoU   h_I/U + I·(h₁ + h_I)/U²
    GIoU  the same and (h₁ + h_I)/E + U·h_E/E²

each with k roundings; the union, a difference, is at least half of its terms. Of values in [0, 2] as many.

Boxes as centre and size become corners first, with an error of u·(|c| + s/2) in each coordinate. What it does to a
value is its derivative, and what it does to a gradient is that of the gradient, taken here by differences of the
oracle's float64; a kink nearby is no slope, but at most a jump to its other side.
"""

from __future__ import annotations

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
_STEP = 1e-7


def roundings(boxes: np.ndarray, others: np.ndarray, unit: Roundoff) -> np.ndarray:
    """What becomes of each coordinate when corners are computed."""
    sizes = np.abs(boxes[:, :2]) + boxes[:, 2:] / 2 + np.abs(others[:, :2]) + others[:, 2:]
    return np.asarray(unit.between * np.tile(sizes, 2))


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def _terms(kind: str, boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The magnitudes of the terms of a corner's derivative, along x and y."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    size, other_size = boxes[:, 2:] - boxes[:, :2], others[:, 2:] - others[:, :2]
    both = np.maximum(np.minimum(boxes[:, 2:], others[:, 2:]) - low, 0.0)
    around = np.maximum(boxes[:, 2:], others[:, 2:]) - np.minimum(boxes[:, :2], others[:, :2])
    intersection, enclosing = (sizes.prod(axis=1, keepdims=True) for sizes in (both, around))
    union = size.prod(axis=1, keepdims=True) + other_size.prod(axis=1, keepdims=True) - intersection
    across, height, enclosing_height = both[:, ::-1], size[:, ::-1], around[:, ::-1]
    terms = across / union + intersection * (height + across) / union**2
    if kind == "giou":
        terms = terms + (height + across) / enclosing + union * enclosing_height / enclosing**2
    return np.asarray(terms)


def pair_bounds(
    kind: str, boxes: np.ndarray, others: np.ndarray, unit: Roundoff, *, centered: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs [N, 4]: the error of each loss, and of its derivative with respect to the first box."""
    corners = (_corners(boxes), _corners(others)) if centered else (boxes, others)
    terms = _terms(kind, *corners)
    value = np.full(len(boxes), 4.0 * BOX_STEPS * unit.between)
    if not centered:
        return value, BOX_STEPS * unit.between * np.tile(terms, 2)
    rounding = roundings(boxes, others, unit)
    gradient = BOX_STEPS * unit.between * np.tile(2 * terms, 2)
    value += BOX_STEPS * (rounding * np.abs(_gradient(kind, boxes, others))).sum(axis=1)
    for k in range(4):
        step = np.zeros(4)
        step[k] = _STEP
        ends = _gradient(kind, boxes + step, others), _gradient(kind, boxes - step, others)
        gradient += BOX_STEPS * rounding[:, k, None] * np.abs(ends[0] - ends[1]) / (2 * _STEP)
    return value, gradient


def _gradient(kind: str, boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    gradient: np.ndarray = FUNCTIONS[kind].call(boxes, others, box_format="cxcywh", reduction="sum").grads["boxes1"]
    return gradient


def overlap(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """iou and giou."""
    boxes1, boxes2 = (real(case.inputs[name]).reshape(-1, 4) for name in ("boxes1", "boxes2"))
    shape = case.inputs["boxes1"].shape
    reduction, centered = case.parameters.get("reduction", "mean"), case.parameters.get("box_format") == "cxcywh"
    value, first = pair_bounds(case.function, boxes1, boxes2, unit, centered=centered)
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
