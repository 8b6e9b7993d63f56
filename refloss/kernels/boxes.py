"""Pairs of boxes: L1 distance, IoU, GIoU and the gradient of a weighted sum of the three; see losses/boxes.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.losses.boxes import factors, interval, overlap, side, slopes
from refloss.numerics.pairs import add, negate, pair, rounded, two_sum

COORDINATES = 4


class Distances(NamedTuple):
    """What each pair yields, float64 [P]; iou_low is what iou's rounding left."""

    l1: np.ndarray
    iou: np.ndarray
    iou_low: np.ndarray
    giou: np.ndarray
    iou_loss: np.ndarray
    giou_loss: np.ndarray


@jit.helper
def _sign(difference):
    # NaN is handed on.
    return 1.0 if difference > 0.0 else (-1.0 if difference < 0.0 else difference)


@jit.helper
def _axis_gradient(a, b, axis, low, high, of_l1, centered, gradient):
    """The gradient of the two numbers that a box has on an axis."""
    if centered:
        first = add(low, high)
        second = add(negate(low), high)
        second = (0.5 * second[0], 0.5 * second[1])
    else:
        first, second = low, high
    gradient[axis] = rounded(add(first, pair(of_l1 * _sign(a[axis] - b[axis]))))
    gradient[axis + 2] = rounded(add(second, pair(of_l1 * _sign(a[axis + 2] - b[axis + 2]))))


@jit.helper
def compare_boxes(a, b, coefficients, centered, distances, index, gradient):
    """A pair of boxes: its distances, and the gradient for the first."""
    x = side(interval(a[0], a[2], centered), interval(b[0], b[2], centered))
    y = side(interval(a[1], a[3], centered), interval(b[1], b[3], centered))
    both = overlap(x, y)
    total = pair(0.0)
    for k in range(COORDINATES):
        high, low = two_sum(a[k], -b[k])
        total = add(total, (high, low) if high >= 0.0 else (-high, -low))
    distances.l1[index] = rounded(total)
    distances.iou[index], distances.iou_low[index] = both.iou
    distances.giou[index] = rounded(both.giou)
    distances.iou_loss[index], distances.giou_loss[index] = rounded(both.iou_loss), rounded(both.giou_loss)
    weights = factors(both, coefficients[1], coefficients[2])
    low, high = slopes(x, y, weights)
    _axis_gradient(a, b, 0, low, high, coefficients[0], centered, gradient)
    low, high = slopes(y, x, weights)
    _axis_gradient(a, b, 1, low, high, coefficients[0], centered, gradient)


@jit.kernel
def box_pairs(boxes, gradient, rows, others, coefficients, centered, distances, with_gradient, first, last):
    """Row rows[p] of boxes against others[p], for pairs first ... last.

    coefficients [P or 1, 3] are the cotangents of L1, 1 − IoU and 1 − GIoU.
    """
    box, result = np.empty(COORDINATES), np.empty(COORDINATES)
    for p in range(first, last):
        load_strided(boxes, row_offset(boxes, rows[p]), boxes.class_stride, box)
        shared = coefficients[p if coefficients.shape[0] > 1 else 0]
        compare_boxes(box, others[p], shared, centered, distances, p, result)
        if with_gradient:
            save_strided(result, gradient, row_offset(gradient, rows[p]), gradient.class_stride)
