"""Double-double arithmetic: a real number as the unevaluated sum of two float64, high + low.

Used where a relative error of 2^-53 would be one too many. The algorithms are the classical ones of Dekker and Knuth
with a fused multiply-add; Joldes, Muller, Popescu, "Tight and rigorous error bounds for basic building blocks of
double-word arithmetic" (ACM TOMS 44, 2017) proves relative errors of a few 2^-106 for such sums and products, and 15 of
them for such a quotient (algorithms 6, 11 and 17; here the last one adds up its remainder in another order).
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.bits import float64_bits, float64_from_bits, fma

# What a sum of a rounding error and a product of low parts may lose: a few 2^-53 of the latter.
NOTHING = 2.0**-48


@jit.scalar
def two_sum(a, b):
    """a + b without error, as a pair."""
    high = a + b
    b_seen = high - a
    return high, (a - (high - b_seen)) + (b - b_seen)


@jit.scalar
def fast_two_sum(a, b):
    """a + b without error, as a pair, for |a| ≥ |b| or a = 0."""
    high = a + b
    return high, b - (high - a)


@jit.scalar
def _normalised(plain, a, b):
    """a + b as a pair, for |a| ≥ |b|; the plain float64 result where infinities leave nothing to correct."""
    high, low = fast_two_sum(a, b)
    finite = abs(plain) < np.inf and low == low
    return high if finite else plain, low if finite else 0.0


@jit.scalar
def two_product(a, b):
    """a·b without error, as a pair."""
    high = a * b
    return high, fma(a, b, -high)


@jit.scalar
def add(a, b):
    """Sum of two pairs."""
    plain, low = two_sum(a[0], b[0])
    tail, tail_low = two_sum(a[1], b[1])
    high, low = fast_two_sum(plain, low + tail)
    return _normalised(plain, high, low + tail_low)


@jit.scalar
def negate(a):
    """Minus a pair."""
    return -a[0], -a[1]


@jit.scalar
def multiply(a, b):
    """Product of two pairs."""
    plain, low = two_product(a[0], b[0])
    return _normalised(plain, plain, low + fma(a[0], b[1], a[1] * b[0]))


@jit.scalar
def product(a, b):
    """Product of two pairs for hot loops: not normalised, with an undefined low part where the high one is infinite."""
    high, low = two_product(a[0], b[0])
    return high, low + fma(a[0], b[1], a[1] * b[0])


@jit.scalar
def times(a, b):
    """a·b for a float64 and a pair."""
    return fma(a, b[0], a * b[1])


@jit.scalar
def _scaled(a, b):
    """a·b for two pairs, normalised, and what its low part must exceed to be more than rounding errors."""
    rest = fma(a[1], b[0], a[0] * b[1])
    # An infinite factor times a low part of 0 must not make the product undefined, nor a rest of 0 turn −0 into 0.
    rest = rest if abs(rest) < np.inf else 0.0
    high = fma(a[0], b[0], rest) if rest != 0.0 else a[0] * b[0]
    # Less the negative: what negates the result of a fused multiply-add may round −0 otherwise.
    return high, rest - fma(-a[0], b[0], high), NOTHING * abs(rest)


@jit.scalar
def scaled(a, b):
    """a·b for two pairs, normalised, for a last rounding.

    Where the rounding error of the high product and what the low parts add to it cancel, the exact product may be a
    short number, which rounding errors must not turn into its neighbour: they are left out. So is what is not a number
    where the high part is infinite.
    """
    high, low, noise = _scaled(a, b)
    return high, low if abs(low) > noise else 0.0


@jit.scalar
def _to_odd(high, low, inexact):
    bits = float64_bits(high)
    # One less where the number is nearer to 0, and an odd one whichever it was.
    apart = (float64_bits(low) ^ bits) >> 63
    return float64_from_bits((bits + apart) | 1 if inexact else bits)


@jit.scalar
def to_odd(a):
    """A normalised pair rounded to odd: of the two float64 next to a number that is none, the one whose last bit is 1.

    Never a tie of a narrower format unless the pair is that tie, so that one more rounding is as good as the only one
    (Boldo, Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 57, 2008).
    """
    return _to_odd(a[0], a[1], abs(a[1]) > 0.0)


@jit.scalar
def scaled_to_odd(a, b):
    """to_odd(scaled(a, b))."""
    high, low, noise = _scaled(a, b)
    return _to_odd(high, low, abs(low) > noise)


@jit.scalar
def normalised(a):
    """A pair whose low part may be undefined, normalised; what is not finite has no low part."""
    rest = a[1] if abs(a[1]) < np.inf else 0.0
    high, low = fast_two_sum(a[0], rest)
    return high, low if abs(high) < np.inf else 0.0


@jit.scalar
def quotient(a, b):
    """Quotient of two pairs for hot loops, with an undefined low part where the high one is not finite."""
    high = a[0] / b[0]
    rest = fma(-high, b[0], a[0]) + fma(-high, b[1], a[1])
    return high, rest / b[0]


@jit.scalar
def is_above(a, limit):
    """Whether a normalised pair is above a float64."""
    return a[0] > limit or (a[0] == limit and a[1] > 0.0)


@jit.scalar
def is_below(a, limit):
    """Whether a normalised pair is below a float64."""
    return a[0] < limit or (a[0] == limit and a[1] < 0.0)


@jit.scalar
def divide(a, b):
    """Quotient of two pairs."""
    plain = a[0] / b[0]
    product, product_low = multiply((plain, 0.0), b)
    rest = ((a[0] - product) - product_low) + a[1]
    return _normalised(plain, plain, rest / b[0])


@jit.scalar
def pair(a):
    """A float64 as a pair."""
    return a, 0.0


@jit.scalar
def rounded(a):
    """The float64 nearest to a pair."""
    return a[0] + a[1]
