"""Negative log-likelihood: one element a row is read, and one written."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, save_pairs
from refloss.numerics.pairs import divide, negate, pair, scaled


class Task(NamedTuple):
    """A negative log-likelihood as its loss states it."""

    input: np.ndarray
    target: np.ndarray
    class_axis: int
    weight: np.ndarray | None
    ignore_index: int
    reduction: str
    cotangent: np.ndarray
    gradient: np.ndarray | None


class Terms(NamedTuple):
    """What a row's loss is made of."""

    labels: np.ndarray  # [R] int64
    weight: np.ndarray  # [C]
    cotangent: np.ndarray  # [R] or [1]
    normaliser: tuple[float, float]
    ignore_index: int


@jit.scalar
def value_at_label(x, weight):
    """−w_y·x_y."""
    return -weight * x


@jit.helper
def slope_at_label(terms, index):
    """The gradient of a row at its label, a pair."""
    cotangent = terms.cotangent[index if terms.cotangent.size > 1 else 0]
    return negate(scaled(divide(pair(cotangent), terms.normaliser), pair(terms.weight[terms.labels[index]])))


@jit.kernel
def nll_rows(rows, gradient, terms, loss, with_gradient):
    """loss_r = −w_y·x_y; its gradient at y, where the gradient is 0 elsewhere already."""
    element, low = np.empty(1), np.empty(1)
    for index in range(loss.size):
        label = terms.labels[index]
        if label == terms.ignore_index:
            loss[index] = 0.0
            continue
        load(rows, index, element, label * rows.class_stride)
        loss[index] = value_at_label(element[0], terms.weight[label])
        if with_gradient:
            element[0], low[0] = slope_at_label(terms, index)
            save_pairs(element, low, gradient, index, label * gradient.class_stride)
