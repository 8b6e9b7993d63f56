"""The logarithm of a number next to e^x, less x: of the one, pairs know too little to tell it from the other.

A triple is a real number as the sum of three float64, some 150 bits. With n the integer nearest to x/ln 2 and
r = x − n·ln 2,

    log t − x = log(1 + δ),    δ = t·e^−x − 1 = (t·2^−n)·e^−r − 1

where t·2^−n is exact and e^−r is Taylor's series.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from refloss import jit
from refloss.numerics.accurate import LN2_LOWEST
from refloss.numerics.bits import ROUND_TO_INTEGER, fma
from refloss.numerics.exponential import LN2_HIGH, LN2_LOW, LOG2_E, scale
from refloss.numerics.pairs import add, fast_two_sum, multiply, pair, two_product, two_sum

# What LN2_HIGH, LN2_LOW and LN2_LOWEST leave of ln 2.
LN2_FOURTH = -3.5824322106018114e-50
# The next term, r^34/34! with |r| ≤ ln(2)/2, is below 2^-179.
_TERMS = 34
_FACTORIALS = [Fraction(1, math.factorial(k)) for k in range(_TERMS)]
_FIRST = [float(value) for value in _FACTORIALS]
_SECOND = [float(value - Fraction(first)) for value, first in zip(_FACTORIALS, _FIRST, strict=True)]
_THIRD = [
    float(value - Fraction(first) - Fraction(second))
    for value, first, second in zip(_FACTORIALS, _FIRST, _SECOND, strict=True)
]
INVERSE_FACTORIALS = np.array([_FIRST, _SECOND, _THIRD])


@jit.scalar
def _normalised(a, b, c):
    b, c = fast_two_sum(b, c)
    a, b = fast_two_sum(a, b)
    b, c = fast_two_sum(b, c)
    return a, b, c


@jit.helper
def _sum(a, b):
    """Sum of two triples."""
    first, rest = two_sum(a[0], b[0])
    second, more = two_sum(a[1], b[1])
    second, most = two_sum(second, rest)
    return _normalised(first, second, (a[2] + b[2]) + (more + most))


@jit.helper
def _product(a, b):
    """Product of two triples."""
    first, rest = two_product(a[0], b[0])
    left, left_low = two_product(a[0], b[1])
    right, right_low = two_product(a[1], b[0])
    second, more = two_sum(left, right)
    second, most = two_sum(second, rest)
    third = fma(a[0], b[2], fma(a[2], b[0], a[1] * b[1])) + (left_low + right_low)
    return _normalised(first, second, third + (more + most))


@jit.helper
def _reduced(x):
    """−r as a triple, and n."""
    n = fma(x, LOG2_E, ROUND_TO_INTEGER) - ROUND_TO_INTEGER
    high, high_low = two_product(n, LN2_HIGH)
    second, second_low = two_product(n, LN2_LOW)
    third, third_low = two_product(n, LN2_LOWEST)
    first, rest = two_sum(high, -x)
    total = _sum((first, rest, 0.0), (high_low, 0.0, 0.0))
    total = _sum(total, (second, second_low, 0.0))
    return _sum(total, (third, third_low, n * LN2_FOURTH)), np.int64(n)


@jit.helper
def log_beyond(t, x):
    """log t − x of a positive t within 2^-30 of e^x, as a pair."""
    r, n = _reduced(x)
    last = _TERMS - 1
    series = (INVERSE_FACTORIALS[0, last], INVERSE_FACTORIALS[1, last], INVERSE_FACTORIALS[2, last])
    for k in range(_TERMS - 2, -1, -1):
        coefficient = (INVERSE_FACTORIALS[0, k], INVERSE_FACTORIALS[1, k], INVERSE_FACTORIALS[2, k])
        series = _sum(_product(series, r), coefficient)
    beyond = _sum(_product(series, (scale(t, -n), 0.0, 0.0)), (-1.0, 0.0, 0.0))
    delta = (beyond[0], beyond[1])
    # The next term is below 2^-90 of the first.
    square = multiply(delta, delta)
    cube = multiply(square, delta)
    return add(delta, add((-0.5 * square[0], -0.5 * square[1]), multiply(cube, pair(1.0 / 3.0))))
