"""Signed numbers with an exponent of their own: products of exponentials that no float64 may hold on the way.

A number is (high + low)·2^exponent: a normalised pair whose high part is within 2^±500 of 1, and an integer. 0 has the
exponent LEAST, so that nothing is lost beside it. What is not finite is its own high part.

These are called, not inlined: a token has dozens of them, and their machine code would be compiled as often.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics import pairs
from refloss.numerics.accurate import exp_significand
from refloss.numerics.exponential import scale
from refloss.numerics.pairs import scaled, to_odd
from refloss.numerics.products import significand

LEAST = -(2**40)
ZERO = (0.0, 0.0, LEAST)
ONE = (1.0, 0.0, 0)
# Beyond it scale has reached its end.
_REACH = 2040
# e to the power of what is above it is infinite, of what is below its negative, 0: no other factor brings it back.
_LARGEST = 2.0**20
# The least number that has all bits of a float64, and room for one more.
_LEAST_NORMAL = 2.0**-1021


@jit.helper
def from_pair(value):
    """A normalised pair."""
    plain = value[0] == 0.0 or not abs(value[0]) < np.inf
    high, exponent = significand(value[0])
    low = 0.0 if plain else scale(value[1], -exponent)
    return value[0] if plain else high, low, (LEAST if value[0] == 0.0 else 0) if plain else exponent


@jit.scalar
def number(value):
    """A float64."""
    return from_pair((value, 0.0))


@jit.helper
def multiply(a, b):
    """Product of two numbers."""
    high, low = scaled((a[0], a[1]), (b[0], b[1]))
    return high, low, a[2] + b[2]


@jit.scalar
def negate(a):
    """Minus a number."""
    return -a[0], -a[1], a[2]


@jit.scalar
def _aligned(a, exponent):
    """A number as a pair times 2^exponent, which is not below its own."""
    apart = max(a[2] - exponent, -_REACH)
    return scale(a[0], apart), scale(a[1], apart)


@jit.helper
def add(a, b):
    """Sum of two numbers."""
    exponent = max(a[2], b[2])
    high, low = pairs.add(_aligned(a, exponent), _aligned(b, exponent))
    return high, low, LEAST if high == 0.0 else exponent


@jit.helper
def divide(a, b):
    """Quotient of two numbers, the second of which is not 0."""
    high, low = pairs.divide((a[0], a[1]), (b[0], b[1]))
    return high, low, a[2] - b[2]


@jit.helper
def as_pair(a):
    """A number as a normalised pair, for a last rounding: infinite above float64's range, rounded to odd below it."""
    exponent = min(max(a[2], -_REACH), _REACH)
    high, low = scale(a[0], exponent), scale(a[1], exponent)
    if abs(high) < _LEAST_NORMAL:
        return scale(to_odd((a[0], a[1])), exponent), 0.0
    return high, low if abs(high) < np.inf else 0.0


@jit.helper
def exponential(high, low):
    """e^(high + low) of a normalised pair, with a relative error below 2^-101; 1 of 0."""
    usual = abs(high) <= _LARGEST
    top, rest, exponent = exp_significand(high if usual else 0.0, low if usual else 0.0)
    beyond = 0.0 if high < 0.0 else (np.inf if high > 0.0 else high)
    least = LEAST if high < 0.0 else 0
    return top if usual else beyond, rest if usual else 0.0, exponent if usual else least
