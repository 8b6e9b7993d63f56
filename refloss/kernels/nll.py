"""Negative log-likelihood: one element a row is read, and one written."""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, save
from refloss.numerics.pairs import divide, multiply, pair, rounded


@jit.kernel
def nll_rows(rows, gradient, labels, weight, cotangent, normaliser, ignore_index, loss, with_gradient):
    """loss_r = −w_y·x_y; its gradient at y, where the gradient is 0 elsewhere already."""
    element = np.empty(1)
    for index in range(labels.size):
        label = labels[index]
        if label == ignore_index:
            loss[index] = 0.0
            continue
        load(rows, index, element, label * rows.class_stride)
        loss[index] = -weight[label] * element[0]
        if with_gradient:
            coefficient = divide(pair(cotangent[index if cotangent.size > 1 else 0]), normaliser)
            element[0] = -rounded(multiply(coefficient, pair(weight[label])))
            save(element, gradient, index, label * gradient.class_stride)
