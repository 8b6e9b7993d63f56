"""Margins between the classes of a row: the helper of multi_margin and multilabel_margin.

With classes x_0 ... x_{C−1} of a row, some of which are targets k, and z_kj = m − x_k + x_j,

    ℓ = Σ_k Σ_{j no target} max(0, z_kj)^p / C
    ∂ℓ/∂x_j = Σ_k s_kj/C,    ∂ℓ/∂x_k = −Σ_j s_kj/C,    s = [z > 0] for p = 1, 2·max(0, z) for p = 2

A target that is named twice counts twice. z is exact: three float64 are added without an error. Nothing cancels but z
itself; for p = 1 slopes are integers, and every gradient is one rounding of an integer times the cotangent.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.kernels.vectors.loop import VectorLoop, total_of
from refloss.numerics.pairs import add, fast_two_sum, multiply, negate, pair, two_sum

# Lines of the scratch: logits, slopes, and of one target the terms, their slopes, and which classes are targets.
_X, _SLOPE, _SLOPE_LOW, _TERM, _TERM_LOW, _STEP, _STEP_LOW, _IS_TARGET = range(8)


@jit.scalar
def _excess(margin, x, other):
    """max(0, margin − x + other), a normalised pair; of NaN 0."""
    plain = (margin - x) + other
    first, first_low = two_sum(margin, -x)
    second, second_low = two_sum(first, other)
    rest, rest_low = two_sum(first_low, second_low)
    high, low = two_sum(second, rest)
    low, rest_low = two_sum(low, rest_low)
    high, low = two_sum(high, low)
    high, low = fast_two_sum(high, low + rest_low)
    ordinary = abs(plain) < np.inf and low == low
    high, low = high if ordinary else plain, low if ordinary else 0.0
    above = high > 0.0
    return high if above else 0.0, low if above else 0.0


@jit.helper
def _mark_targets(scratch, labels):
    """Clear the slopes, and mark the classes that labels name, up to the first that is negative."""
    for j in range(scratch.shape[1]):
        scratch[_SLOPE, j] = 0.0
        scratch[_SLOPE_LOW, j] = 0.0
        scratch[_IS_TARGET, j] = 0.0
    for i in range(labels.size):
        if labels[i] < 0:
            break
        scratch[_IS_TARGET, labels[i]] = 1.0


@jit.helper
def _margins_of_target(scratch, x, margin, squared):
    """Terms and slopes of one target into the scratch; slopes are added to those of the classes."""
    for j in range(scratch.shape[1]):
        excess = _excess(margin, x, scratch[_X, j])
        if scratch[_IS_TARGET, j] > 0.0:
            excess = pair(0.0)
        if squared:
            term, slope = multiply(excess, excess), (2.0 * excess[0], 2.0 * excess[1])
        else:
            term, slope = excess, pair(1.0 if excess[0] > 0.0 else 0.0)
        scratch[_TERM, j], scratch[_TERM_LOW, j] = term
        scratch[_STEP, j], scratch[_STEP_LOW, j] = slope
        total = add((scratch[_SLOPE, j], scratch[_SLOPE_LOW, j]), slope)
        scratch[_SLOPE, j], scratch[_SLOPE_LOW, j] = total


@jit.helper
def _of_row(scratch, labels, parameters, with_slopes):
    """The sum of a row's terms, and its slopes."""
    margin, squared = parameters[0], parameters[1] == 2.0
    total = pair(0.0)
    _mark_targets(scratch, labels)
    for i in range(labels.size):
        label = labels[i]
        if label < 0:
            break
        _margins_of_target(scratch, scratch[_X, label], margin, squared)
        total = add(total, total_of(scratch[_TERM], scratch[_TERM_LOW]))
        if with_slopes:
            pulled = negate(total_of(scratch[_STEP], scratch[_STEP_LOW]))
            pulled = add((scratch[_SLOPE, label], scratch[_SLOPE_LOW, label]), pulled)
            scratch[_SLOPE, label], scratch[_SLOPE_LOW, label] = pulled
    return total


LOOP = VectorLoop("class_margins", 1, 8, _of_row)
