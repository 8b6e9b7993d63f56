"""Rows' residuals r = x + δ·y − z with δ = end − start, and of each row W = |r|²·e^w/D − w.

Both terms of Lagrangian self-distillation are of this form, with D numbers a row: flow matching, where y is the noise
and δ is 1, and distillation, where y is a velocity's derivative. z may have fewer rows, F of them: row i is compared
with row i mod F, whose gradient is a sum. With κ the cotangent of W and G = 2κ·e^w/D,

    ∂/∂x = G·r    ∂/∂y = G·δ·r    ∂/∂z = −Σ G·r    ∂/∂end = G·Σ r·y = −∂/∂start    ∂/∂w = κ·(|r|²·e^w/D − 1)

Everything is a pair from the inputs on: a residual may cancel, and so does what is left of the last one, which is 0
where the weighting is right. e^w is the fourth power of e^(w/4), and powers of two are kept apart, so that neither a
weight nor a length leaves the range of float64 on the way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import AnyRows, load_strided, row_offset, save_strided
from refloss.numerics.accurate import exp_alone
from refloss.numerics.exponential import scale
from refloss.numerics.formats import INFINITY_BITS, magnitude_bits
from refloss.numerics.pairs import add, divide, multiply, negate, pair, product, scaled, to_odd, two_product, two_sum
from refloss.numerics.products import far_product, significand

# What the errors of pairs leave of a sum that is 0, relative to its terms.
_NOTHING = 2.0**-90
# Factors within these, as powers of two, are applied to residuals at once.
_NEAR = 600
_LEAST, _LARGEST = 2.0**-300, 2.0**300
# A quarter of a logarithm, beyond which its power has left all ranges.
_FAR = 700.0
# Below it the low part of a pair may be lost.
_SMALL = 2.0**-900
_REACH = 2040
Pair = tuple[float, float]


class Terms(NamedTuple):
    """What is read: rows x and y [N, D] and z [F, D], and numbers of rows [N]."""

    x: AnyRows
    y: AnyRows
    z: AnyRows
    start: AnyRows
    end: AnyRows
    log_variance: AnyRows


class Wanted(NamedTuple):
    """Which gradients are written; any memory stands in for the others."""

    x: bool
    y: bool
    z: bool
    start: bool
    end: bool
    log_variance: bool


class Weighed(NamedTuple):
    """A row's term, its derivative for w, and e^w/D as a pair times a power of two."""

    value: Pair
    slope: Pair
    factor: Pair
    exponent: int


@jit.scalar
def residual(x, y, z, step):
    """x + step·y − z for a pair as step, as a pair."""
    high, low = two_product(step[0], y)
    return add(two_sum(x, -z), (high, low + step[1] * y))


@jit.scalar
def size_bits(value):
    """The bits of a pair without its sign."""
    return np.int64(magnitude_bits(value[0]))


@jit.scalar
def square(value, exponent):
    """The square of a pair over 2^exponent, a pair."""
    over = scale(value[0], -exponent), scale(value[1], -exponent)
    return product(over, over)


@jit.scalar
def exponent_above(largest):
    """An exponent for the residuals of a row, from the bits of the largest one."""
    return (largest >> 52) - 1022


@jit.helper
def _power(w):
    """e^w as a pair near 1 and an exponent."""
    if not abs(w) < np.inf:
        return pair(w if w > 0.0 or w != w else 0.0), 0
    root = exp_alone(min(max(0.25 * w, -_FAR), _FAR), 0.0)
    high, exponent = significand(root[0])
    second = multiply((high, scale(root[1], -exponent)), (high, scale(root[1], -exponent)))
    return multiply(second, second), 4 * exponent


@jit.helper
def _placed(value, exponent):
    """A pair times a power of two, as a pair."""
    total = min(max(exponent, -_REACH), _REACH)
    high = scale(value[0], total)
    if abs(high) < _SMALL:
        return scale(to_odd(value), total), 0.0
    return high, scale(value[1], total) if abs(high) < np.inf else 0.0


@jit.helper
def weighed(length, exponent, size, w):
    """Of |r|²/2^exponent, D and w what they come to."""
    power, of_power = _power(w)
    mean = multiply(divide(length, pair(size)), power)
    weighted = _placed(mean, exponent + of_power)
    return Weighed(add(weighted, pair(-w)), add(weighted, pair(-1.0)), divide(power, pair(size)), of_power)


@jit.helper
def slope_factor(factor, exponent, coefficient):
    """G as a pair, and the exponent of a power of two beside it: 0 where it is of ordinary size."""
    doubled = scaled((2.0 * factor[0], 2.0 * factor[1]), coefficient)
    size = abs(doubled[0])
    near = abs(exponent) <= _NEAR and size > _LEAST and size < _LARGEST
    if near or size == 0.0 or not size < np.inf:
        return _placed(doubled, exponent), 0
    return doubled, exponent


@jit.helper
def times_slope(value, factor, exponent):
    """value·factor·2^exponent of two pairs, for a last rounding."""
    if exponent == 0 or value[0] == 0.0 or factor[0] == 0.0:
        return scaled(value, factor)
    return far_product(value, 1.0, 1.0, factor, exponent)


@jit.scalar
def unless_nothing(total, size):
    """A sum; 0, where its errors are all that is left."""
    return total if not abs(total[0]) < _NOTHING * size else pair(0.0)


@jit.helper
def _load(rows, index, row):
    load_strided(rows, row_offset(rows, index), rows.class_stride, row)


@jit.helper
def _save(high, low, rows, index):
    """A row of pairs, which it spoils."""
    if rows.format != 0:
        for k in range(high.size):
            high[k] = to_odd((high[k], low[k]))
    save_strided(high, rows, row_offset(rows, index), rows.class_stride)


@jit.helper
def _save_one(value, rows, index, one):
    one[0] = to_odd(value) if rows.format != 0 else value[0]
    save_strided(one, rows, row_offset(rows, index), 1)


@jit.helper
def _length(high, low):
    """|r|² as a pair over a power of two, and its exponent."""
    largest = 0
    for k in range(high.size):
        bits = size_bits((high[k], 0.0))
        largest = bits if bits > largest else largest
    total = pair(0.0)
    if largest >= INFINITY_BITS:
        for k in range(high.size):
            total = pair(total[0] + high[k] * high[k])
        return total, 0
    exponent = exponent_above(largest)
    for k in range(high.size):
        total = add(total, square((high[k], low[k]), exponent))
    return total, 2 * exponent


@jit.helper
def _along(high, low, y):
    """Σ r·y."""
    total, size = pair(0.0), 0.0
    for k in range(high.size):
        term = scaled((high[k], low[k]), pair(y[k]))
        total = add(total, term)
        size += abs(term[0])
    return unless_nothing(total, size)


@jit.helper
def _fill(high, low, factor, exponent, of_high, of_low):
    for k in range(high.size):
        of_high[k], of_low[k] = times_slope((high[k], low[k]), factor, exponent)


@jit.helper
def _add(high, low, factor, exponent, sums, is_first):
    """Add a sample's gradient to the sums of highs and lows, and of magnitudes."""
    for k in range(high.size):
        term = times_slope((high[k], low[k]), factor, exponent)
        total = term if is_first else add((sums[0, k], sums[1, k]), term)
        sums[0, k], sums[1, k] = total
        sums[2, k] = abs(term[0]) if is_first else sums[2, k] + abs(term[0])


@jit.helper
def _finish(sums):
    for k in range(sums.shape[1]):
        sums[0, k], sums[1, k] = unless_nothing((sums[0, k], sums[1, k]), sums[2, k])


@jit.kernel
def flow_rows(terms, slopes, wanted, coefficient, samples, frames, values, values_low, first, last):
    """Write the values of all samples of frames first ... last, and what is wanted of gradients."""
    size = terms.x.classes
    rows, sums, one = np.empty((7, size)), np.empty((3, size)), np.empty(1)
    x, y, z, high, low, of_high, of_low = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6]
    for frame in range(first, last):
        _load(terms.z, frame, z)
        for sample in range(samples):
            row = sample * frames + frame
            _load(terms.x, row, x)
            _load(terms.y, row, y)
            _load(terms.start, row, one)
            start = one[0]
            _load(terms.end, row, one)
            step = two_sum(one[0], -start)
            _load(terms.log_variance, row, one)
            for k in range(size):
                high[k], low[k] = residual(x[k], y[k], z[k], step)
            length, exponent = _length(high, low)
            found = weighed(length, exponent, np.float64(size), one[0])
            values[row], values_low[row] = found.value
            if wanted.log_variance:
                _save_one(scaled(found.slope, coefficient), slopes.log_variance, row, one)
            factor, of_factor = slope_factor(found.factor, found.exponent, coefficient)
            if wanted.x:
                _fill(high, low, factor, of_factor, of_high, of_low)
                _save(of_high, of_low, slopes.x, row)
            if wanted.y:
                _fill(high, low, scaled(factor, step), of_factor, of_high, of_low)
                _save(of_high, of_low, slopes.y, row)
            if wanted.z:
                _add(high, low, negate(factor), of_factor, sums, sample == 0)
            if wanted.start or wanted.end:
                along = times_slope(_along(high, low, y), factor, of_factor)
                if wanted.end:
                    _save_one(along, slopes.end, row, one)
                if wanted.start:
                    _save_one(negate(along), slopes.start, row, one)
        if wanted.z:
            _finish(sums)
            _save(sums[0], sums[1], slopes.z, frame)
