"""Non-negative numbers with an exponent of their own, for sums over paths: probabilities that no float64 can hold.

A number is (high + low)·2^exponent: a pair whose high part is in [1, 2), and an int64. 0 has a pair of zeros and the
exponent LEAST. Nothing underflows, so a recursion over thousands of frames needs neither logarithms nor a common scale.

Relative errors: a sum 2^-104, a product 2^-103, a ratio 2^-101, an exponential 2^-100. All terms are positive, so
nothing cancels, and errors add up: a recursion of n frames with two sums and a product each loses n·2^-101, which is
2^-91 for 1000 frames.

−log of a probability next to 1 is a difference: it keeps the absolute error of that probability. A loss above 2^-40
has a relative error below 2^-51 from one of 2^-91, and is within an ulp but for its rounding.

No branch: loops over arrays of high parts, low parts and exponents vectorise. NaN is handed on.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics import pairs
from refloss.numerics.accurate import LN2_LOWEST, SQRT_2, exp_significand, log_accurate
from refloss.numerics.bits import float64_bits, float64_from_bits, fma
from refloss.numerics.exponential import LN2_HIGH, LN2_LOW, scale
from refloss.numerics.pairs import fast_two_sum, quotient, two_product, two_sum
from refloss.numerics.products import significand

# The exponent of 0. Twice it is an int64, and 2^20 factors of e^LOWEST_LOGARITHM stay above it.
LEAST = -(2**61)
ZERO = (0.0, 0.0, LEAST)
ONE = (1.0, 0.0, 0)
# e to the power of what is below it is 0; of what is above its negative, NaN.
LOWEST_LOGARITHM = -(2.0**40)
# A term that is 2^_LOST times another one adds nothing to a pair, and is left out before it is subnormal.
_LOST = -300
# Beyond it scale has reached its end.
_REACH = 2040


@jit.scalar
def normalised(value, exponent):
    """value·2^exponent of a non-negative pair whose high part is 0 or a normal number, and whose low part is small."""
    high, low = fast_two_sum(value[0], value[1])
    excess = (float64_bits(high) >> 52) - 1023
    power = float64_from_bits((1023 - excess) << 52)
    return high * power, low * power, LEAST if high == 0.0 else exponent + excess


@jit.scalar
def from_pair(value):
    """A non-negative finite pair, or NaN."""
    high, exponent = significand(value[0])
    vanishes = value[0] == 0.0
    return normalised((0.0 if vanishes else high, 0.0 if vanishes else scale(value[1], -exponent)), exponent)


@jit.scalar
def as_pair(a):
    """A number as a pair, with what float64 has for it: 0 below 2^-1075, and fewer bits below 2^-969."""
    exponent = min(max(a[2], -_REACH), _REACH)
    return scale(a[0], exponent), scale(a[1], exponent)


@jit.scalar
def exponential(high, low):
    """e^(high + low) of a normalised pair; −inf gives 0, NaN and +inf NaN."""
    vanishes = high < LOWEST_LOGARITHM
    usual = abs(high) <= -LOWEST_LOGARITHM
    top, rest, exponent = exp_significand(high if usual else 0.0, low if usual else 0.0)
    top, rest, exponent = normalised((top, rest), exponent)
    top = top if usual else (0.0 if vanishes else np.nan)
    return top, rest if usual else 0.0, LEAST if vanishes else exponent


@jit.scalar
def probability(x, lse):
    """e^(x − lse) of a logit and its row's log-sum-exp, a pair."""
    high, low = two_sum(x, -lse[0])
    high, low = fast_two_sum(high, low - lse[1])
    return exponential(high if abs(x) < np.inf else x, low)


@jit.scalar
def aligned(a, exponent):
    """a·2^−exponent as a pair, for an exponent that is no less than that of a by more than 1000."""
    apart = a[2] - exponent
    power = float64_from_bits((apart + 1023) << 52 if apart > _LOST else 0)
    return a[0] * power, a[1] * power


@jit.scalar
def plus(a, b):
    """Sum of two non-negative pairs for hot loops: not normalised."""
    high, low = two_sum(a[0], b[0])
    return high, low + (a[1] + b[1])


@jit.scalar
def product(a, b):
    """Product of two numbers for hot loops: not normalised, its high part is below 4."""
    high, low = pairs.product((a[0], a[1]), (b[0], b[1]))
    return high, low, a[2] + b[2]


@jit.scalar
def add(a, b):
    """Sum of two numbers; high parts may be up to 2^100, as those of products."""
    exponent = max(a[2], b[2])
    return normalised(plus(aligned(a, exponent), aligned(b, exponent)), exponent)


@jit.scalar
def multiply(a, b):
    """Product of two numbers; high parts may be up to 2^100."""
    high, low, exponent = product(a, b)
    return normalised((high, low), exponent)


@jit.scalar
def ratio(a, b):
    """a over b, which is not 0."""
    return normalised(quotient((a[0], a[1]), (b[0], b[1])), a[2] - b[2])


@jit.helper
def logarithm(a):
    """log a as a pair, −inf for 0; with a relative error below 2^-97 beside that of a."""
    if not a[0] > 0.0:
        return -np.inf if a[0] == 0.0 else a[0], 0.0
    # Between √½ and √2, so that a number next to 1 has no power of two.
    beyond = a[0] > SQRT_2
    half = 0.5 if beyond else 1.0
    high, low = log_accurate(half * a[0], half * a[1])
    k = np.float64(a[2] + (1 if beyond else 0))
    power_low, power_lowest = two_product(k, LN2_LOW)
    power = pairs.add(two_product(k, LN2_HIGH), (power_low, fma(k, LN2_LOWEST, power_lowest)))
    return pairs.add(power, (high, low))
