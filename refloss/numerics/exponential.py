"""Exponential and logarithm on float64, to within 0.65 ulp, the same bits on every machine.

e^x. Write x = n·ln 2 + r with n an integer and |r| ≤ ln(2)/2. Then e^x = 2^n·e^r, and

    e^r = 1 + r + r²·P(r),    P(r) ≈ 1/2! + r/3! + ... + r^10/12!

with P fitted to a relative error of 2^-61 (the Taylor polynomial would need one more term). What costs accuracy is
not the fit but r: x − n·ln 2 cancels, so ln 2 is held in two parts, the first subtraction is exact (n·LN2_HIGH is a
multiple of 2^-53, and so is what remains), and the rounding error of the second is carried into the tail. Adding 1 + r
is error-free as a pair for the same reason. The last addition is then the only rounding that matters.

log u. Write u = 2^k·f with f in [√½, √2). With s = (f − 1)/(f + 1),

    log f = 2·artanh(s) = 2s + s³·L(s²),    L(s²) ≈ 2/3 + 2s²/5 + ...

|s| < 0.172, and eight terms of L fit it to 2^-60 of the sum. s is computed as a pair, k·ln 2 is exact but for its low
part. The argument itself may be a pair: log1p(y) is the logarithm of the pair 1 + y, with no loss for the tiniest y.

Series are summed in halves and quarters (Estrin) instead of one term after the other: what a processor waits for is
the longest chain of operations that need each other's result.

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
# Chebyshev fit of 2·artanh(s)/s = 2 + L3·s² + L5·s⁴ + ... on s² < 0.0295.
L3 = 0.6666666666666666
L5 = 0.4000000000000088
L7 = 0.2857142857080323
L9 = 0.2222222239180047
L11 = 0.18181795630884753
L13 = 0.15386240205813478
L15 = 0.13268759668560612
L17 = 0.13086767009948175
# Chebyshev fit of 2·artanh(z/2)/z = 1 + U0·z² + U1·z⁴ + ... on z² ≤ 4/9.
U0 = 0.08333333333333333
U1 = 0.012499999999999852
U2 = 0.0022321428571562578
U3 = 0.00043402777730931194
U4 = 8.877841747052107e-05
U5 = 1.8779960894605164e-05
U6 = 4.069573556960833e-06
U7 = 8.9525444498468e-07
U8 = 2.068553618408206e-07
U9 = 3.572532556319602e-08
U10 = 1.8633100749162258e-08


@jit.scalar
def scale(value, exponent):
    """value·2^exponent in two steps, each with a normal power of two; exponent within ±2040."""
    half = exponent >> 1
    first = float64_from_bits((half + 1023) << 52)
    second = float64_from_bits((exponent - half + 1023) << 52)
    return value * first * second


@jit.scalar
def _exp_series(r):
    """P(r)."""
    square = r * r
    first = fma(E4, square, fma(E3, r, E2))
    middle = fma(fma(E8, r, E7), square, fma(E6, r, E5))
    last = fma(fma(E12, r, E11), square, fma(E10, r, E9))
    return fma(fma(last, square * square, middle), square * r, first)


@jit.scalar
def _exp_reduced(high, low):
    """e^(high + low) as (leading, tail, n): (leading + tail)·2^n, leading + tail in [0.7, 1.42]."""
    shifted = fma(high, LOG2_E, ROUND_TO_INTEGER)
    n = shifted - ROUND_TO_INTEGER
    exact = fma(-n, LN2_HIGH, high)
    rest = fma(-n, LN2_LOW, low)
    r = exact + rest
    lost = (exact - r) + rest
    leading = 1.0 + r
    tail = ((1.0 - leading) + r) + lost
    return leading, fma(r * r, _exp_series(r), tail), float64_bits(shifted) - float64_bits(ROUND_TO_INTEGER)


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
def _artanh_series(square):
    """2·artanh(s)/s − 2 of s²."""
    fourth = square * square
    first = fma(fma(L9, square, L7), fourth, fma(L5, square, L3))
    last = fma(fma(L17, square, L15), fourth, fma(L13, square, L11))
    return fma(last, fourth * fourth, first) * square


@jit.scalar
def log_pair(high, low):
    """log(high + low) of a positive pair, as a pair with a relative error below 2^-56."""
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
    log_f = fast_two_sum(2.0 * s, fma(s, _artanh_series(s * s), 2.0 * s_low))

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
def exp_of_negative(x, low=0.0):
    """e^(x + low) for x ≤ 0, as a pair whose relative error is below 2^-54 where it is a normal number."""
    leading, tail, n = exp_pair(-746.0 if x < -746.0 else x, 0.0 if x < -746.0 else low)
    power = float64_from_bits((n + 1151) << 52)
    return leading * power * 2.0**-128, tail * power * 2.0**-128


@jit.scalar
def _unit_series(square):
    """U(z²)."""
    fourth = square * square
    first = fma(fma(U3, square, U2), fourth, fma(U1, square, U0))
    middle = fma(fma(U7, square, U6), fourth, fma(U5, square, U4))
    last = fma(U10, fourth, fma(U9, square, U8))
    eighth = fourth * fourth
    return fma(fma(last, eighth, middle), eighth, first)


@jit.scalar
def logistic(x):
    """Of u = e^−|x|: u as a pair, 1/(1 + u), and log(1 + u) as a pair with a relative error below 2^-53.

    With z = 2u/(2 + u) in [0, 2/3], log(1 + u) = 2·artanh(z/2) = z + z³·U(z²): no reduction of the argument, and with
    u = 2^-1074 still exact. Both quotients come from one division.
    """
    u, u_low = exp_of_negative(-abs(x))
    whole, bottom, top = 1.0 + u, 2.0 + u, 2.0 * u
    inverse_of_both = 1.0 / (whole * bottom)
    inverse = inverse_of_both * bottom
    whole_low = ((1.0 - whole) + u) + u_low
    inverse = fma(fma(-inverse, whole_low, fma(-inverse, whole, 1.0)), inverse, inverse)
    inverse_bottom = inverse_of_both * whole
    z = top * inverse_bottom
    bottom_low = ((2.0 - bottom) + u) + u_low
    rest = (fma(-z, bottom, top) + fma(-z, bottom_low, 2.0 * u_low)) * inverse_bottom
    square = z * z
    return (u, u_low), inverse, (z, fma(z * square, _unit_series(square), rest))


@jit.scalar
def log1p(x):
    """log(1 + x): −inf at −1, NaN below."""
    high, low = log1p_pair(x, 0.0)
    if x > -1.0 and x < np.inf:
        return high + low
    if x == -1.0:
        return -np.inf
    return x if x > -1.0 else np.nan


@jit.scalar
def excess(z):
    """e^z − 1 and e^z − 1 − z, without loss for small z."""
    bounded = 710.0 if z > 710.0 else (-746.0 if z < -746.0 else z)
    leading, tail, n = _exp_reduced(bounded, 0.0)
    whole = scale(leading + tail, n)
    small = z * z * _exp_series(z)
    near = n == 0
    return z + small if near else whole - 1.0, small if near else (whole - 1.0) - z
