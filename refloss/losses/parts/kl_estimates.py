"""Estimates of a divergence from one sample: KL(π ‖ π_ref) of a token that was drawn from π.

With q = log π_ref − log π of that token (Schulman, "Approximating KL divergence", 2020), and slopes in log π,

    k1 = −q, slope 1        k2 = q²/2, slope −q        k3 = e^q − q − 1, slope 1 − e^q

and of the products with the ratio r = π/π_old, through which the slope passes as well, over r:

    1 − q        q·(q/2 − 1)        −q

Numerics. k3 is near q²/2 where q is small: there it is its Taylor series, and up to ¼ the difference of e^q − 1 and q.
What a product's two slopes have in common is cancelled on paper. All are numbers with exponents (numerics.far).
"""

from __future__ import annotations

from typing import Literal, get_args

from refloss import jit
from refloss.numerics import far
from refloss.numerics.accurate import INVERSE_FACTORIALS, INVERSE_FACTORIALS_LOW, SMALL, exp_less_one
from refloss.numerics.pairs import add, multiply, negate, pair

Estimate = Literal["k1", "k2", "k3"]
ESTIMATES = get_args(Estimate)
# As kernels are told of them; 0 is none.
CODES = {name: float(code) for code, name in enumerate(ESTIMATES, 1)}
# Up to it e^q − 1 is not a difference.
_NEAR = 0.25
# Below it e^q − 1 is q to the last digit of a pair.
_TINY = 2.0**-120
_TERMS = 7


@jit.helper
def exp_minus_one(q):
    """e^q − 1 of a normalised pair."""
    if abs(q[0]) < _TINY:
        return far.from_pair(q)
    if abs(q[0]) <= _NEAR:
        return far.from_pair(exp_less_one(q))
    return far.add(far.exponential(q[0], q[1]), (-1.0, 0.0, 0))


@jit.helper
def _third(q):
    """e^q − q − 1."""
    number = far.from_pair(q)
    if abs(q[0]) < SMALL:
        series = pair(0.0)
        for k in range(_TERMS + 1, 1, -1):
            series = add(multiply(series, q), (INVERSE_FACTORIALS[k], INVERSE_FACTORIALS_LOW[k]))
        return far.multiply(far.from_pair(series), far.multiply(number, number))
    if abs(q[0]) <= _NEAR:
        return far.from_pair(add(exp_less_one(q), negate(q)))
    return far.add(exp_minus_one(q), far.negate(number))


@jit.helper
def estimate(q, code):
    """The estimate."""
    number = far.from_pair(q)
    if code == 1.0:
        return far.negate(number)
    if code == 2.0:
        high, low, exponent = far.multiply(number, number)
        return 0.5 * high, 0.5 * low, exponent
    return _third(q)


@jit.helper
def slope_of_estimate(q, code):
    """Its slope in log π."""
    if code == 1.0:
        return far.ONE
    if code == 2.0:
        return far.negate(far.from_pair(q))
    return far.negate(exp_minus_one(q))


@jit.helper
def slope_of_product(q, code):
    """The slope of the ratio times the estimate, over the ratio."""
    if code == 1.0:
        return far.from_pair(add(pair(1.0), negate(q)))
    if code == 2.0:
        beyond = add((0.5 * q[0], 0.5 * q[1]), pair(-1.0))
        return far.multiply(far.from_pair(q), far.from_pair(beyond))
    return far.negate(far.from_pair(q))
