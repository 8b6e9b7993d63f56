"""Negative log-likelihood: one element a row is read, and one written."""

from __future__ import annotations

from refloss import jit
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import store, widen
from refloss.numerics.pairs import divide, multiply, pair, rounded


@jit.kernel
def nll_rows(rows, gradient, labels, weight, cotangent, normaliser, ignore_index, loss, with_gradient):
    """loss_r = −w_y·x_y; its gradient at y, where the gradient is 0 elsewhere already."""
    for index in range(labels.size):
        label = labels[index]
        if label == ignore_index:
            loss[index] = 0.0
            continue
        x = widen(rows.memory[row_offset(rows, index) + label * rows.class_stride])
        loss[index] = -weight[label] * x
        if with_gradient:
            coefficient = divide(pair(cotangent[index if cotangent.size > 1 else 0]), normaliser)
            place = row_offset(gradient, index) + label * gradient.class_stride
            store(gradient.memory, place, -rounded(multiply(coefficient, pair(weight[label]))))
