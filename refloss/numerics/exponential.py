"""Exponential and logarithm on float64, to within 0.65 ulp, the same bits on every machine.

e^x. Write x = n·ln 2 + r with n an integer and |r| ≤ ln(2)/2. Then e^x = 2^n·e^r, and

    e^r = 1 + r + r²·P(r),    P(r) ≈ 1/2! + r/3! + ... + r^10/12!

with P fitted to a relative error of 2^-61 (the Taylor polynomial would need one more term). What costs accuracy is
not the fit but r: x − n·ln 2 cancels, so ln 2 is held in two parts, the first subtraction is exact (n·LN2_HIGH is a
multiple of 2^-53, and so is what remains), and the rounding error of the second is carried into the tail. Adding 1 + r
is error-free as a pair for the same reason. The last addition is then the only rounding that matters.

log u. Write u = 2^k·f with f in [√½, √2). With s = (f − 1)/(f + 1),

    log f = 2·artanh(s) = 2s + 2s³·(1/3 + s²/5 + ... + s^20/23)

|s| < 0.172, so the next term is below 2^-62 of the sum. s is computed as a pair, k·ln 2 is exact but for its low part.
The argument itself may be a pair: log1p(y) is the logarithm of the pair 1 + y, with no loss for the tiniest y.

The only important cutoffs are where results leave the range of float64: e^x overflows above 709.79 and is 0 below
-745.14; both are reached by scaling with two powers of two, so that subnormal results are rounded once.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.bits import ROUND_TO_INTEGER, float64_bits, float64_from_bits, fma
from refloss.numerics.pairs import add, fast_two_sum, two_sum

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471805599453
LN2_LOW = 2.3190468138462996e-17
# Thirty-two significant bits, so that a product with an exponent is exact.
LN2_SHORT = 0.6931471803691238
LN2_REST = 1.9082149292705877e-10
LN2_REST_LOW = 1.1612227229362533e-26
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD

# Chebyshev fit of P on |r| ≤ ln(2)/2; the degrees are those of e^r.
E12 = 2.091467944897855e-09
E11 = 2.5105206475334834e-08
E10 = 2.7557273661174726e-07
E9 = 2.75572554255029e-06
E8 = 2.4801587325533502e-05
E7 = 0.00019841269874800683
E6 = 0.0013888888888883752
E5 = 0.008333333333326141
E4 = 0.04166666666666667
E3 = 0.1666666666666667
E2 = 0.5
# Twice the series of artanh.
L3, L5, L7, L9, L11, L13, L15, L17, L19, L21, L23 = (2.0 / k for k in range(3, 24, 2))


@jit.scalar
def scale(value, exponent):
    """value·2^exponent in two steps, each with a normal power of two; exponent within ±2040."""
    half = exponent >> 1
    first = float64_from_bits((half + 1023) << 52)
    second = float64_from_bits((exponent - half + 1023) << 52)
    return value * first * second


@jit.scalar
def _exp_reduced(high, low):
    """e^(high + low) as (leading, tail, n): (leading + tail)·2^n, leading + tail in [0.7, 1.42]."""
    shifted = fma(high, LOG2_E, ROUND_TO_INTEGER)
    n = shifted - ROUND_TO_INTEGER
    exact = fma(-n, LN2_HIGH, high)
    rest = fma(-n, LN2_LOW, low)
    r = exact + rest
    lost = (exact - r) + rest
    series = fma(E12, r, E11)
    series = fma(series, r, E10)
    series = fma(series, r, E9)
    series = fma(series, r, E8)
    series = fma(series, r, E7)
    series = fma(series, r, E6)
    series = fma(series, r, E5)
    series = fma(series, r, E4)
    series = fma(series, r, E3)
    series = fma(series, r, E2)
    leading = 1.0 + r
    tail = ((1.0 - leading) + r) + lost
    return leading, fma(r * r, series, tail), float64_bits(shifted) - float64_bits(ROUND_TO_INTEGER)


@jit.scalar
def exp(x):
    """e^x."""
    x = 710.0 if x > 710.0 else (-746.0 if x < -746.0 else x)
    leading, tail, n = _exp_reduced(x, 0.0)
    return scale(leading + tail, n)


@jit.scalar
def exp_pair(high, low):
    """e^(high + low) as a pair and a power of two: (leading + tail)·2^n; |high| ≤ 10^6."""
    leading, tail, n = _exp_reduced(high, low)
    leading, tail = fast_two_sum(leading, tail)
    return leading, tail, n


@jit.scalar
def exp_difference(x, reference):
    """e^(x − reference) as if the difference were exact; x ≤ reference, both finite or x = −inf.

    Vectorises to some forty instructions. The power of two is applied 128 too high and taken back by a product, so that
    subnormal results are rounded once.
    """
    high, low = two_sum(x, -reference)
    vanishes = high < -746.0
    high = -746.0 if vanishes else high
    low = 0.0 if vanishes else low
    leading, tail, n = _exp_reduced(high, low)
    return float64_from_bits(float64_bits(leading + tail) + ((n + 128) << 52)) * 2.0**-128


@jit.scalar
def log_pair(high, low):
    """log(high + low) of a positive pair, as a pair with a relative error below 2^-58."""
    subnormal = high < 2.0**-1000
    high = high * 2.0**100 if subnormal else high
    low = low * 2.0**100 if subnormal else low
    exponent = (float64_bits(high) - SQRT_HALF_BITS) >> 52
    f = float64_from_bits(float64_bits(high) - (exponent << 52))
    f_low = scale(low, -exponent)
    exponent = exponent - 100 if subnormal else exponent

    top_high, top_low = two_sum(f - 1.0, f_low)
    bottom_high, bottom_low = two_sum(f, 1.0)
    bottom_low += f_low
    s = top_high / bottom_high
    s_low = ((fma(-s, bottom_high, top_high) + top_low) - s * bottom_low) / bottom_high
    square = s * s
    series = fma(L23, square, L21)
    series = fma(series, square, L19)
    series = fma(series, square, L17)
    series = fma(series, square, L15)
    series = fma(series, square, L13)
    series = fma(series, square, L11)
    series = fma(series, square, L9)
    series = fma(series, square, L7)
    series = fma(series, square, L5)
    series = fma(series, square, L3)
    log_f = fast_two_sum(2.0 * s, fma(s * square, series, 2.0 * s_low))

    k = np.float64(exponent)
    log_power = fast_two_sum(k * LN2_SHORT, fma(k, LN2_REST, k * LN2_REST_LOW))
    return add(log_power, log_f)


@jit.scalar
def log(x):
    """Natural logarithm: −inf at 0, NaN below."""
    high, low = log_pair(x, 0.0)
    if x > 0.0 and x < np.inf:
        return high + low
    if x == 0.0:
        return -np.inf
    return x if x > 0.0 else np.nan


@jit.scalar
def log1p_pair(high, low):
    """log(1 + high + low) of a pair above −1, as a pair."""
    one_high, one_low = two_sum(1.0, high)
    result_high, result_low = log_pair(one_high, one_low + low)
    # Below 2^-54 the quadratic term is below half an ulp, and halving a subnormal would lose a bit.
    tiny = abs(high) < 2.0**-60
    return high if tiny else result_high, fma(-0.5 * high, high, low) if tiny else result_low


@jit.scalar
def softplus_pair(x):
    """log(1 + e^x) as a pair."""
    below = -abs(x)
    leading, tail, n = exp_pair(-800.0 if below < -800.0 else below, 0.0)
    small, small_low = log1p_pair(scale(leading, n), scale(tail, n))
    high, low = two_sum(x if x > 0.0 else 0.0, small)
    return high, low + small_low if high < np.inf else 0.0


@jit.scalar
def sigmoid(x):
    """1 / (1 + e^−x)."""
    small = exp(-abs(x))
    return (1.0 if x >= 0.0 else small) / (1.0 + small)


@jit.scalar
def log1p(x):
    """log(1 + x): −inf at −1, NaN below."""
    high, low = log1p_pair(x, 0.0)
    if x > -1.0 and x < np.inf:
        return high + low
    if x == -1.0:
        return -np.inf
    return x if x > -1.0 else np.nan
