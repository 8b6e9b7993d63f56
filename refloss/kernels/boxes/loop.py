"""One loop over pairs of boxes, of whose losses one scalar says everything: see losses/parts/boxes.py.

Boxes are gathered into rows, a number of every pair each, so that several pairs are worked on at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.numerics.pairs import to_odd

COORDINATES = 4
BLOCK = 128
# Rows begin at different offsets from a page: where they do not, a load waits for a store to another row.
_PITCH = BLOCK + 8
Pair = tuple[float, float]


@dataclass(frozen=True)
class BoxLoop(jit.Description):
    """The scalar of a pair: compare(a, b, cotangents, centered), of boxes that are tuples.

    It returns the pair's distances, and a's gradient: high parts of its coordinates, and low parts.
    """

    compare: Callable[..., Any]


class Cotangents(NamedTuple):
    """Those of the three losses of a pair, pairs of float64."""

    l1: Pair
    iou: Pair
    giou: Pair


class Pairs(NamedTuple):
    """Rows of boxes, what they are compared with, and cotangents of L1, 1 − IoU and 1 − GIoU."""

    rows: np.ndarray  # [P] int64
    others: np.ndarray  # [P, 4] float64
    coefficients: np.ndarray  # [P or 1, 3, 2], pairs
    centered: bool


class Distances(NamedTuple):
    """What each pair yields, float64 [P]; iou_low is what iou's rounding left."""

    l1: np.ndarray
    iou: np.ndarray
    iou_low: np.ndarray
    giou: np.ndarray
    iou_loss: np.ndarray
    giou_loss: np.ndarray


@jit.scalar
def cotangents_of(coefficients, p):
    """The cotangents of a pair."""
    k = p if coefficients.shape[0] > 1 else 0
    return Cotangents(
        (coefficients[k, 0, 0], coefficients[k, 0, 1]),
        (coefficients[k, 1, 0], coefficients[k, 1, 1]),
        (coefficients[k, 2, 0], coefficients[k, 2, 1]),
    )


# The rows of a block's scratch: one vector, whose parts a compiler knows to be apart.
_BOXES, _OTHERS, _COTANGENTS, _DISTANCES, _HIGH, _LOW, _ROWS = 0, 4, 8, 14, 20, 24, 28


@jit.scalar
def _at(row, i):
    # Without a sign, an index is not looked at for counting from the end.
    return np.uint64(row * _PITCH + i)


@jit.scalar
def _four(block, row, i):
    return block[_at(row, i)], block[_at(row + 1, i)], block[_at(row + 2, i)], block[_at(row + 3, i)]


@jit.scalar
def _put_four(values, block, row, i):
    block[_at(row, i)] = values[0]
    block[_at(row + 1, i)] = values[1]
    block[_at(row + 2, i)] = values[2]
    block[_at(row + 3, i)] = values[3]


@jit.helper
def _gather(boxes, pairs, first, count, block):
    """Both boxes of each pair from the first one on, and their cotangents."""
    box = np.empty(COORDINATES)
    for i in range(count):
        p = first + i
        load_strided(boxes, row_offset(boxes, pairs.rows[p]), boxes.class_stride, box)
        cotangents = pairs.coefficients[p if pairs.coefficients.shape[0] > 1 else 0]
        for k in range(COORDINATES):
            block[_at(_BOXES + k, i)], block[_at(_OTHERS + k, i)] = box[k], pairs.others[p, k]
        for k in range(cotangents.shape[0]):
            block[_at(_COTANGENTS + 2 * k, i)], block[_at(_COTANGENTS + 2 * k + 1, i)] = cotangents[k]


@jit.helper
def _save_distances(block, distances, first, count):
    for i in range(count):
        distances.l1[first + i], distances.iou[first + i] = block[_at(_DISTANCES, i)], block[_at(_DISTANCES + 1, i)]
        distances.iou_low[first + i] = block[_at(_DISTANCES + 2, i)]
        distances.giou[first + i] = block[_at(_DISTANCES + 3, i)]
        distances.iou_loss[first + i] = block[_at(_DISTANCES + 4, i)]
        distances.giou_loss[first + i] = block[_at(_DISTANCES + 5, i)]


@jit.helper
def _scatter(block, pairs, first, count, gradient):
    """Four pairs of each pair of boxes, each rounded once, to a row of the gradient."""
    box = np.empty(COORDINATES)
    for i in range(count):
        for k in range(COORDINATES):
            high, low = block[_at(_HIGH + k, i)], block[_at(_LOW + k, i)]
            box[k] = to_odd((high, low)) if gradient.format != 0 else high
        save_strided(box, gradient, row_offset(gradient, pairs.rows[first + i]), gradient.class_stride)


@jit.once
def compiled(loop: BoxLoop) -> Any:
    """The loop on the CPU."""
    compare = loop.compare

    @functools.partial(jit.helper, name=loop.name)
    def fill(block, centered, count):
        for i in range(count):
            of_l1, of_iou = _four(block, _COTANGENTS, i), _four(block, _COTANGENTS + 2, i)
            cotangents = Cotangents(of_l1[:2], of_iou[:2], of_iou[2:])
            boxes, others = _four(block, _BOXES, i), _four(block, _OTHERS, i)
            distances, high, low = compare(boxes, others, cotangents, centered)
            _put_four((distances.l1, distances.iou, distances.iou_low, distances.giou), block, _DISTANCES, i)
            block[_at(_DISTANCES + 4, i)] = distances.iou_loss
            block[_at(_DISTANCES + 5, i)] = distances.giou_loss
            _put_four(high, block, _HIGH, i)
            _put_four(low, block, _LOW, i)

    def box_pairs(boxes, gradient, pairs, distances, with_gradient, first, last):
        """Row rows[p] of boxes against others[p], for pairs first ... last."""
        block = np.empty(_ROWS * _PITCH)
        for start in range(first, last, BLOCK):
            count = min(BLOCK, last - start)
            _gather(boxes, pairs, start, count, block)
            fill(block, pairs.centered, count)
            _save_distances(block, distances, start, count)
            if with_gradient:
                _scatter(block, pairs, start, count, gradient)

    return jit.kernel(box_pairs, loop.name)
