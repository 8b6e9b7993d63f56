"""Negative log-likelihood on the CPU; one element a row is too little work for threads."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from refloss.kernels.launch_cross_entropy import divided, label_normaliser
from refloss.kernels.nll import nll_rows
from refloss.kernels.rows import any_rows_of
from refloss.numerics.sums import as_pair, exact_sum


def nll(
    x: np.ndarray,
    target: np.ndarray,
    class_axis: int,
    weight: np.ndarray | None,
    ignore_index: int,
    reduction: str,
    cotangent: np.ndarray,
    gradient: np.ndarray | None,
) -> np.float64 | np.ndarray:
    """The reduced loss; the gradient is written into its buffer."""
    labels = np.ascontiguousarray(target.reshape(-1), dtype=np.int64)
    normaliser: Fraction | float = Fraction(1)
    if reduction == "mean":
        normaliser = label_normaliser(labels, weight, ignore_index)
    if gradient is not None:
        gradient[...] = 0
    loss = np.empty(labels.size)
    factors = np.ones(x.shape[class_axis]) if weight is None else weight
    rows = any_rows_of(x, class_axis)
    written = rows if gradient is None else any_rows_of(gradient, class_axis)
    with_gradient = gradient is not None
    nll_rows(rows, written, labels, factors, cotangent, as_pair(normaliser), ignore_index, loss, with_gradient)
    return loss.reshape(target.shape) if reduction == "none" else divided(exact_sum(loss), normaliser)
