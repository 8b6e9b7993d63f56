"""Exponential and logarithm on float64, within 1 ulp, the same bits on every machine.

How much closer they come is measured in docs/numerics.md: e^x to 0.68 ulp (of the 0.83 that its roundings might add up
to), log and log1p to 0.53, log(1 + e^x) to 0.74. A subnormal result is rounded a second time: 0.81 at 100 000 points.

e^x. Write x = n·ln 2 + r with n an integer and |r| ≤ ln(2)/2. Then e^x = 2^n·e^r, and

    e^r = 1 + r + r²·P(r),    P(r) ≈ 1/2! + r/3! + ... + r^10/12!

with P fitted so that e^r has a relative error of 2^-61 (the Taylor polynomial would need two more terms). What costs
accuracy is not the fit but r: x − n·ln 2 cancels, so ln 2 is held in two parts. The first subtraction is exact: for
n ≠ 0 both x and n·LN2_HIGH are multiples of 2^-54, and what remains is one below 1/2. The rounding error of the second
is carried into the tail, and so is that of 1 + r. The last addition costs 1/2 ulp; the roundings of r² and of P, and
the rest of r that misses them, at most 0.33 ulp more (tests/test_recipes.py adds them up).

log u. Write u = 2^k·f with f in [√½, √2). With s = (f − 1)/(f + 1),

    log f = 2·artanh(s) = 2s + s³·L(s²),    L(s²) ≈ 2/3 + 2s²/5 + ...

|s| < 0.172, and eight terms of L fit log f to a relative error of 2^-60. s is computed as a pair, k·ln 2 is exact but
for its low part. The argument itself may be a pair: log1p(y) is the logarithm of the pair 1 + y, with no loss for the
tiniest y.

Series are summed in halves and quarters (Estrin) instead of one term after the other: what a processor waits for is
the longest chain of operations that need each other's result.

The only important cutoffs are where results leave the range of float64: e^x overflows above 709.79 and is 0 below
−745.14. Both are reached by scaling the rounded e^r with two powers of two, of which only the second one can round.

Every constant is derived by tests/coefficients.py, which docs/numerics.md says how to run.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.bits import ROUND_TO_INTEGER, float64_bits, float64_from_bits, fma
from refloss.numerics.pairs import add, fast_two_sum, product, two_sum

# The float64 nearest to 1/ln 2; the one nearest to ln 2, and the one nearest to what that leaves.
LOG2_E = 1.4426950408889634
LN2_HIGH = 0.6931471805599453
LN2_LOW = 2.3190468138462996e-17
# The first 32 bits of ln 2, whose product with an exponent, of eleven bits, is exact; then what they leave, as above.
LN2_SHORT = 0.6931471803691238
LN2_REST = 1.9082149292705877e-10
LN2_REST_LOW = 1.1612227229362533e-26
# The bits of the float64 nearest to √½.
SQRT_HALF_BITS = 0x3FE6A09E667F3BCD

# Beyond these an argument of e^x is replaced by them: e^710 > 2^1024 still overflows, e^−746 < 2^-1075 still rounds to
# 0, and −1076 ≤ n ≤ 1024 is within the reach of scale.
OVERFLOW = 710.0
UNDERFLOW = -746.0
# Down to here e^x is a normal number: e^−708 > 2^-1022.
LEAST_NORMAL = -708.0
# For y below it log(1 + y) is the pair y − y²/2: the next term, y³/3, is below 2^-121 of it, and pairs hold 2^-106. Far
# above what is subnormal, where log_pair's halving of y would lose a bit.
TINY = 2.0**-60
# A power of two with an exponent n ≥ −1076 is held 2^RAISED times too large: a normal number, as is its product with
# e^r ≥ 2^-1/2. What takes that back is then the only rounding that scaling makes.
RAISED = 128
LOWER = 2.0**-RAISED

# The three polynomials below interpolate at Chebyshev nodes: with N coefficients, they equal the function at the N
# points (low + high)/2 + (high − low)/2·cos(π·(k − ½)/N), k = 1 ... N; no weight, 80 digits, then each coefficient is
# rounded to float64 on its own.
#
# P(r) = (e^r − 1 − r)/r² in r, degree 10, for |r| ≤ ln(2)/2·(1 + 2^-20): n is the integer nearest to x·LOG2_E, not to
# x/ln 2, so that r goes beyond ln(2)/2, by less than 10^-9 for |x| ≤ 10^6. The names have the degrees of e^r.
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
# L(s²) = (2·artanh(s)/s − 2)/s² in s², degree 7, for s² ≤ 1.0001·(3 − 2√2)² = 0.02944...: s = ±(3 − 2√2) is where f
# is √2 or √½, which are rounded. The names have the degrees of log f.
L3 = 0.6666666666666666
L5 = 0.4000000000000088
L7 = 0.2857142857080323
L9 = 0.2222222239180047
L11 = 0.18181795630884753
L13 = 0.15386240205813478
L15 = 0.13268759668560612
L17 = 0.13086767009948175
# 2/3, the first of Taylor's coefficients of the same, as a pair.
TWO_THIRDS = 0.6666666666666666
TWO_THIRDS_LOW = 3.700743415417188e-17
# U(z²) = (2·artanh(z/2)/z − 1)/z² in z², degree 10, for z² ≤ 4/9; log(1 + u), of logistic, to 2^-58 with it.
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
def exp_terms(high, low):
    """e^(high + low) as (leading, tail, n): (leading + tail)·2^n, leading + tail in [0.7, 1.42]."""
    shifted = fma(high, LOG2_E, ROUND_TO_INTEGER)
    n = shifted - ROUND_TO_INTEGER
    exact = fma(-n, LN2_HIGH, high)
    rest = fma(-n, LN2_LOW, low)
    r = exact + rest
    leading = 1.0 + r
    tail = ((1.0 - leading) + exact) + rest
    return leading, fma(r * r, _exp_series(r), tail), float64_bits(shifted) - float64_bits(ROUND_TO_INTEGER)


@jit.scalar
def exp(x):
    """e^x."""
    x = OVERFLOW if x > OVERFLOW else (UNDERFLOW if x < UNDERFLOW else x)
    leading, tail, n = exp_terms(x, 0.0)
    return scale(leading + tail, n)


@jit.scalar
def exp_pair(high, low):
    """e^(high + low) as a pair and a power of two: (leading + tail)·2^n; |high| ≤ 10^6."""
    leading, tail, n = exp_terms(high, low)
    leading, tail = fast_two_sum(leading, tail)
    return leading, tail, n


@jit.scalar
def exp_below(high, low):
    """e^(high + low) for high ≤ 0, −inf included, whatever low is there.

    Vectorises to some forty instructions. The power of two is applied 2^RAISED times too large and taken back by a
    product: a subnormal result is rounded a second time, but not a third.
    """
    vanishes = high < UNDERFLOW
    high = UNDERFLOW if vanishes else high
    low = 0.0 if vanishes else low
    leading, tail, n = exp_terms(high, low)
    return float64_from_bits(float64_bits(leading + tail) + ((n + RAISED) << 52)) * LOWER


@jit.scalar
def exp_normal(x):
    """e^x for LEAST_NORMAL ≤ x ≤ 0."""
    leading, tail, n = exp_terms(x, 0.0)
    return float64_from_bits(float64_bits(leading + tail) + (n << 52))


@jit.scalar
def exp_difference(x, reference):
    """e^(x − reference) as if the difference were exact; x ≤ reference, both finite or x = −inf."""
    high, low = two_sum(x, -reference)
    return exp_below(high, low)


@jit.scalar
def _artanh_series(square):
    """2·artanh(s)/s − 2 = s²·L(s²), of s²."""
    fourth = square * square
    first = fma(fma(L9, square, L7), fourth, fma(L5, square, L3))
    last = fma(fma(L17, square, L15), fourth, fma(L13, square, L11))
    return fma(last, fourth * fourth, first) * square


@jit.scalar
def log_pair(high, low):
    """log(high + low) of a positive pair, as a pair with a relative error below 2^-56."""
    # From 2^-1000 on high is normal, and so is 2^-1074·2^100; a product with 2^100 is exact.
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
def _artanh_tail(square):
    """2·artanh(s)/s − 2 − 2·s²/3 over s⁴, of s²: Taylor's series, whose next term is below 2^-70 of log f."""
    fourth = square * square
    first = fma(fma(2 / 11, square, 2 / 9), fourth, fma(2 / 7, square, 2 / 5))
    middle = fma(fma(2 / 19, square, 2 / 17), fourth, fma(2 / 15, square, 2 / 13))
    last = fma(fma(2 / 27, square, 2 / 25), fourth, fma(2 / 23, square, 2 / 21))
    eighth = fourth * fourth
    return fma(fma(last, eighth, middle), eighth, first)


@jit.scalar
def log_finely(x):
    """log x of a positive float64, as a pair with a relative error below 2^-62: two terms of the series are pairs."""
    subnormal = x < 2.0**-1000
    x = x * 2.0**100 if subnormal else x
    exponent = (float64_bits(x) - SQRT_HALF_BITS) >> 52
    f = float64_from_bits(float64_bits(x) - (exponent << 52))
    exponent = exponent - 100 if subnormal else exponent

    top = f - 1.0
    bottom, bottom_low = two_sum(f, 1.0)
    s = top / bottom
    s_low = (fma(-s, bottom, top) - s * bottom_low) / bottom
    square = product((s, s_low), (s, s_low))
    third = product(product(square, (s, s_low)), (TWO_THIRDS, TWO_THIRDS_LOW))
    tail = _artanh_tail(square[0]) * (square[0] * square[0]) * s
    high, low = two_sum(2.0 * s, third[0])
    log_f = fast_two_sum(high, low + ((2.0 * s_low + third[1]) + tail))

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
    tiny = abs(high) < TINY
    return high if tiny else result_high, fma(-0.5 * high, high, low) if tiny else result_low


@jit.scalar
def exp_of_negative(x, low=0.0):
    """e^(x + low) for x ≤ 0, as a pair whose relative error is below 2^-54 where it is above 2^-1017.

    Below, its low part is subnormal; the error is up to 2^-1074 more.
    """
    leading, tail, n = exp_pair(UNDERFLOW if x < UNDERFLOW else x, 0.0 if x < UNDERFLOW else low)
    power = float64_from_bits((n + 1023 + RAISED) << 52)
    return leading * power * LOWER, tail * power * LOWER


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

    That of log(1 + u) is for u above 2^-1017, as is that of u. With z = 2u/(2 + u) in [0, 2/3], log(1 + u) =
    2·artanh(z/2) = z + z³·U(z²): no reduction of the argument, and for the least u, 2^-1074, u itself. Both quotients
    come from one division.
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
    """e^z − 1 and e^z − 1 − z.

    Without loss for |z| ≤ ln(2)/2: relative errors of 2^-52 and 2^-51. Just beyond, where both are differences, up to
    2^-51 and 2^-48, and less for larger z.
    """
    bounded = OVERFLOW if z > OVERFLOW else (UNDERFLOW if z < UNDERFLOW else z)
    leading, tail, n = exp_terms(bounded, 0.0)
    whole = scale(leading + tail, n)
    small = z * z * _exp_series(z)
    near = n == 0
    return z + small if near else whole - 1.0, small if near else (whole - 1.0) - z
