"""Exponential and logarithm to the accuracy of pairs, for the few elements of which float64 would leave too little.

Some twenty times slower than numerics.exponential: relative errors are near 2^-98 instead of 2^-53.

log f. With y the logarithm of numerics.exponential, good to 2^-56, and δ = f·e^−y − 1,

    log f = y + log(1 + δ) = y + δ − δ²/2 + ...    |δ| < 2^-55

log(1 + y) of a small y is its Taylor series, so that no digit of y is lost in 1 + y.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.numerics.bits import ROUND_TO_INTEGER, float64_bits, fma
from refloss.numerics.exponential import (
    LN2_HIGH,
    LN2_LOW,
    LOG2_E,
    UNDERFLOW,
    log_pair,
    scale,
)
from refloss.numerics.pairs import add, divide, fast_two_sum, multiply, pair, product, two_product, two_sum
from refloss.numerics.products import significand

# A difference of which less than this share of its terms is left is computed again: terms with errors of 2^-53 leave
# 2^-41 of it, which misrounds one float32 in 10^5 and is 2^-17 of its unit in the last place.
CLOSE = 2.0**-12
# Below it log(1 + y) is a series: its ninth term is below 2^-130 of the first.
SMALL = 2.0**-16
SQRT_2 = 1.4142135623730951
# What LN2_HIGH and LN2_LOW leave of ln 2, as a float64.
LN2_LOWEST = 5.707708438416212e-34
# |s| ≤ ln(2)/2/2^_HALVINGS; the next term of (e^s − 1)/s, s^12/13!, is below 2^-122. From s^6/7! on, 2^-57 of the
# first, float64 holds enough of them.
_HALVINGS = 6
_TERMS = 13
_FACTORIALS = [Fraction(1, math.factorial(k)) for k in range(_TERMS)]
INVERSE_FACTORIALS = tuple(float(value) for value in _FACTORIALS)
INVERSE_FACTORIALS_LOW = tuple(float(value - Fraction(float(value))) for value in _FACTORIALS)
_INVERSES = np.array([(-1) ** k / (k + 1) for k in range(8)])
_INVERSES_LOW = np.array(
    [float(Fraction((-1) ** k, k + 1) - Fraction((-1) ** k / (k + 1))) for k in range(len(_INVERSES))]
)


@jit.scalar
def is_close(value, subtracted):
    """Whether too little of a difference is left."""
    return abs(value) < CLOSE * abs(subtracted)


@jit.scalar
def _step(high, low, series, s):
    """(high + low) + series·s for |high| ≥ |series·s|, a pair."""
    following = product(series, s)
    top, rest = fast_two_sum(high, following[0])
    return fast_two_sum(top, rest + (following[1] + low))


@jit.scalar
def _doubled(excess):
    """e^2s − 1 from e^s − 1 for |s| ≤ ln(2)/4: twice it, and its square."""
    square = product(excess, excess)
    top, rest = fast_two_sum(2.0 * excess[0], square[0])
    return fast_two_sum(top, rest + fma(2.0, excess[1], square[1]))


@jit.scalar
def _exp_less_one_next_to_0(s):
    """e^s − 1 of a pair within ±ln(2)/2/2^_HALVINGS, as a pair."""
    x = s[0]
    inverse, low = INVERSE_FACTORIALS, INVERSE_FACTORIALS_LOW
    rest = fma(
        fma(fma(fma(fma(inverse[12], x, inverse[11]), x, inverse[10]), x, inverse[9]), x, inverse[8]), x, inverse[7]
    )
    series = _step(inverse[6], low[6], (rest, 0.0), s)
    series = _step(inverse[5], low[5], series, s)
    series = _step(inverse[4], low[4], series, s)
    series = _step(inverse[3], low[3], series, s)
    series = _step(inverse[2], low[2], series, s)
    series = _step(1.0, 0.0, series, s)
    high, low_part = product(series, s)
    return fast_two_sum(high, low_part)


@jit.scalar
def exp_less_one(x):
    """e^x − 1 of a pair within ±½, as a pair with a relative error below 2^-98."""
    excess = _exp_less_one_next_to_0((x[0] * 2.0**-_HALVINGS, x[1] * 2.0**-_HALVINGS))
    excess = _doubled(_doubled(_doubled(excess)))
    return _doubled(_doubled(_doubled(excess)))


@jit.scalar
def reduced(high, low):
    """A pair less n·ln 2, as a pair within ±ln(2)/2, and n; |high| below 2^50."""
    shifted = fma(high, LOG2_E, ROUND_TO_INTEGER)
    n = shifted - ROUND_TO_INTEGER
    less, less_low = two_product(-n, LN2_LOW)
    r = two_sum(fma(-n, LN2_HIGH, high), low)
    r = add(r, (less, fma(-n, LN2_LOWEST, less_low)))
    return r, float64_bits(shifted) - float64_bits(ROUND_TO_INTEGER)


@jit.scalar
def exp_significand(high, low):
    """e^(high + low) for |high| below 2^50 as a pair (0.7 to 1.42) and a power of two; a relative error below 2^-101.

    The argument less its multiple of ln 2 is halved _HALVINGS times; e^s − 1, not e^s, is doubled as often, so that its
    errors stay small beside 1. No table and no branch: it vectorises.
    """
    r, n = reduced(high, low)
    excess = exp_less_one(r)
    top, rest = fast_two_sum(1.0, excess[0])
    top, rest = fast_two_sum(top, rest + excess[1])
    return top, rest, n


@jit.scalar
def exp_accurate(high, low):
    """e^(high + low) for −746 ≤ high ≤ 709, as a pair with a relative error below 2^-101."""
    top, rest, exponent = exp_significand(high, low)
    return scale(top, exponent), scale(rest, exponent)


@jit.helper
def exp_alone(high, low):
    """The same where it is not one of many: machine code that is called, not inlined."""
    return exp_accurate(high, low)


@jit.helper
def _log1p_series(y):
    """log(1 + y) of a pair |y| < SMALL, as a pair."""
    series = pair(0.0)
    for k in range(len(_INVERSES) - 1, -1, -1):
        series = add(multiply(series, y), (_INVERSES[k], _INVERSES_LOW[k]))
    return multiply(series, y)


@jit.helper
def log_accurate(high, low):
    """log(high + low) of a positive normalised pair, as a pair."""
    top, exponent = significand(high)
    beyond = top > SQRT_2
    exponent += 1 if beyond else 0
    f = (0.5 * top if beyond else top, scale(low, -exponent))
    above_one = add(f, pair(-1.0))
    if abs(above_one[0]) < SMALL:
        log_f = _log1p_series(above_one)
    else:
        start = log_pair(f[0], f[1])
        rest = add(multiply(f, exp_alone(-start[0], -start[1])), pair(-1.0))
        log_f = add(start, add(rest, (-0.5 * rest[0] * rest[0], 0.0)))
    k = np.float64(exponent)
    low_power, lowest_power = two_product(k, LN2_LOW)
    log_power = add(two_product(k, LN2_HIGH), (low_power, fma(k, LN2_LOWEST, lowest_power)))
    return add(log_power, log_f)


@jit.helper
def log1p_accurate(high, low):
    """log(1 + high + low) of a pair above −1, as a pair."""
    if abs(high) < SMALL:
        return _log1p_series((high, low))
    whole = add(pair(1.0), (high, low))
    return log_accurate(whole[0], whole[1])


class Sigmoids(NamedTuple):
    """Sigmoids of a logit on both of its sides, pairs."""

    u: tuple[float, float]  # e^−|x|
    larger: tuple[float, float]  # 1/(1 + u) = σ(|x|)
    smaller: tuple[float, float]  # u/(1 + u) = σ(−|x|)


class Logistic(NamedTuple):
    """The same, and log(1 + u)."""

    u: tuple[float, float]
    larger: tuple[float, float]
    smaller: tuple[float, float]
    small: tuple[float, float]


@jit.helper
def exp_of_size(x, low=0.0):
    """e^−|x + low| of a normalised pair, as a pair; NaN is handed on."""
    rest = low if x < 0.0 else -low
    return exp_alone(-abs(x), rest) if abs(x) < -UNDERFLOW else pair(0.0 if x == x else x)


@jit.helper
def sigmoids_accurate(x, low=0.0):
    """Those of a logit x + low, a normalised pair."""
    u = exp_of_size(x, low)
    whole = add(pair(1.0), u)
    return Sigmoids(u, divide(pair(1.0), whole), divide(u, whole))


@jit.helper
def logistic_accurate(x, low=0.0):
    """Those of a logit x + low, a normalised pair."""
    u, larger, smaller = sigmoids_accurate(x, low)
    return Logistic(u, larger, smaller, log1p_accurate(u[0], u[1]))
