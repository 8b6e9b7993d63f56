"""Double-double arithmetic: a real number as the unevaluated sum of two float64, high + low.

Used where a relative error of 2^-53 would be one too many. The algorithms are the classical ones of Dekker and Knuth
with a fused multiply-add; Joldes, Muller, Popescu, "Tight and rigorous error bounds for basic building blocks of
double-word arithmetic" (ACM TOMS 44, 2017) proves relative errors of a few 2^-106 for such sums and products, and 15 of
them for such a quotient (algorithms 6, 11 and 17; here the last one adds up its remainder in another order).
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.bits import fma


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
def settled(a):
    """The float64 nearest to a pair whose low part may be undefined."""
    return a[0] + a[1] if a[1] == a[1] else a[0]


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
