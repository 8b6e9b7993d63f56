"""One loop over pairs of boxes, of whose losses one scalar says everything: see losses/parts/boxes.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.numerics.pairs import to_odd

COORDINATES = 4


@dataclass(frozen=True)
class BoxLoop(jit.Description):
    """The scalar of a pair: compare(a, b, coefficients, centered, with_gradient, distances, index, gradient).

    It fills in the distances of a pair and, if wanted, a's gradient, a column of pairs [2, 4]; coefficients [2, 3] are
    the cotangents of L1, 1 − IoU and 1 − GIoU, pairs as well.
    """

    compare: Callable[..., Any]


class Pairs(NamedTuple):
    """Rows of boxes, what they are compared with, and cotangents of L1, 1 − IoU and 1 − GIoU."""

    rows: np.ndarray  # [P] int64
    others: np.ndarray  # [P, 4] float64
    coefficients: np.ndarray  # [P or 1, 2, 3]: high and low parts
    centered: bool


class Distances(NamedTuple):
    """What each pair yields, float64 [P]; iou_low is what iou's rounding left."""

    l1: np.ndarray
    iou: np.ndarray
    iou_low: np.ndarray
    giou: np.ndarray
    iou_loss: np.ndarray
    giou_loss: np.ndarray


@jit.helper
def _save(result, gradient, offset):
    """Four pairs, each rounded once, to a row of the gradient."""
    if gradient.format != 0:
        for k in range(COORDINATES):
            result[0, k] = to_odd((result[0, k], result[1, k]))
    save_strided(result[0], gradient, offset, gradient.class_stride)


@jit.once
def compiled(loop: BoxLoop) -> Any:
    """The loop on the CPU."""
    compare = loop.compare

    def box_pairs(boxes, gradient, pairs, distances, with_gradient, first, last):
        """Row rows[p] of boxes against others[p], for pairs first ... last."""
        box, result = np.empty(COORDINATES), np.empty((2, COORDINATES))
        for p in range(first, last):
            load_strided(boxes, row_offset(boxes, pairs.rows[p]), boxes.class_stride, box)
            shared = pairs.coefficients[p if pairs.coefficients.shape[0] > 1 else 0]
            compare(box, pairs.others[p], shared, pairs.centered, with_gradient, distances, p, result)
            if with_gradient:
                _save(result, gradient, row_offset(gradient, pairs.rows[p]))

    return jit.kernel(box_pairs, loop.name)
