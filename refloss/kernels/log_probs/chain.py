"""From logits to what a softmax is taken of: z = c·tanh(s·x/c)/T, or s·x/T without a cap c.

Two values of z differ by what is computed from the difference of their logits, which is exact: of two numbers next to
each other nothing is left but errors. With a = s·x/c, where both are near c or near −c,

    tanh a − tanh b = −2·(1 − e^(−2·(b − a)))·σ(2b)·σ(−2a)    for a ≤ b

is a product of positive numbers, and so is the derivative, 1 − tanh² a = 4·σ(2a)·σ(−2a).
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.numerics.accurate import exp_alone, exp_less_one, sigmoids_accurate
from refloss.numerics.exact import as_pair
from refloss.numerics.exponential import UNDERFLOW
from refloss.numerics.pairs import add, multiply, negate, pair, scaled, two_sum


class Chain(NamedTuple):
    """What is between logits and a softmax, for kernels."""

    direction: float  # the sign of s: where z is largest
    factor: tuple[float, float]  # s/T, the derivative where nothing is capped
    capped: bool
    inner: tuple[float, float]  # 2s/c
    outer: tuple[float, float]  # −2c/T


def chain_of(logit_scale: float, softcap: float | None, temperature: float) -> Chain:
    """The chain of finite options, of which cap and temperature are positive."""
    scale, divisor = Fraction(logit_scale), Fraction(temperature)
    cap = Fraction(1) if softcap is None else Fraction(softcap)
    return Chain(
        direction=float(np.sign(logit_scale)),
        factor=as_pair(scale / divisor),
        capped=softcap is not None,
        inner=as_pair(2 * scale / cap),
        outer=as_pair(-2 * cap / divisor),
    )


@jit.helper
def _growth(x):
    """1 − e^−x of a pair x ≥ 0, a pair."""
    if x[0] < 0.5:
        return negate(exp_less_one(negate(x)))
    return add(pair(1.0), negate(exp_alone(-x[0], -x[1]) if x[0] < -UNDERFLOW else pair(0.0)))


@jit.helper
def _capped_distance(x, highest, chain):
    """z less that of the highest; an infinite logit is as far as the cap."""
    here, there = scaled(pair(x), chain.inner), scaled(pair(highest), chain.inner)
    apart, apart_low = two_sum(highest, -x)
    apart = scaled((apart, apart_low if apart < np.inf and apart > -np.inf else 0.0), chain.inner)
    low, high = sigmoids_accurate(here[0], here[1]), sigmoids_accurate(there[0], there[1])
    below = low.smaller if here[0] > 0.0 else low.larger
    above = high.larger if there[0] > 0.0 else high.smaller
    return multiply(multiply(chain.outer, _growth(apart)), multiply(below, above))


@jit.helper
def distance(x, highest, chain):
    """z of a logit less that of the highest, a normalised pair that is not above 0; −inf far below."""
    if x == highest:
        return pair(0.0)
    if chain.capped:
        return _capped_distance(x, highest, chain)
    high, low = two_sum(x, -highest)
    return scaled((high, low if high > -np.inf and high < np.inf else 0.0), chain.factor)


@jit.helper
def slope(x, chain):
    """dz/dx, a pair."""
    if not chain.capped:
        return chain.factor
    here = scaled(pair(x), chain.inner)
    sides = sigmoids_accurate(here[0], here[1])
    high, low = multiply(chain.factor, multiply(sides.larger, sides.smaller))
    return 4.0 * high, 4.0 * low


@jit.helper
def highest_of(x, chain):
    """A class of the largest z; −1 where the softmax is undefined: NaN, a largest one that is infinite, no class."""
    found = -1
    highest = -np.inf
    for c in range(x.size):
        here = chain.direction * x[c]
        if here != here:
            return -1
        if here > highest or found < 0:
            found, highest = c, here
    return found if chain.capped or abs(highest) < np.inf else -1
