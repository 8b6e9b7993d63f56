"""The host's arithmetic of exact numbers: sums, normalisers and quotients, rounded once."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np

from refloss.numerics.memory import as_writable
from refloss.numerics.sums import DEPOSITS, LIMBS, UNITS, accumulated, deposit_all

# A sum, or what divides one: a Fraction, or a float where it is not finite.
Exact = Fraction | float


def exact_sum(values: np.ndarray) -> Exact:
    """The exact sum of float64 values; a float where one of them is not finite."""
    total, special = 0, 0.0
    flat = as_writable(np.ascontiguousarray(values, dtype=np.float64).reshape(-1))
    for start in range(0, flat.size, DEPOSITS):
        limbs = np.zeros(LIMBS, dtype=np.int64)
        special += deposit_all(flat[start : start + DEPOSITS], limbs)
        total += accumulated(limbs)
    return Fraction(total, UNITS) if special == 0.0 else special


def joined_sum(limbs: list[int], special: list[float]) -> Exact:
    """The sum of parts: what their accumulators hold, unless a part had terms that are not finite."""
    return sum(special) or Fraction(sum(limbs), UNITS)


def rounded(value: Exact) -> float:
    """The float64 nearest to a number."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def as_pair(value: Exact) -> tuple[float, float]:
    """A number as high + low, both float64."""
    high = rounded(value)
    if not math.isfinite(high):
        return high, 0.0
    # What is left, rounded once. Without fractions, which would look for common divisors.
    (a, b), (c, d) = value.as_integer_ratio(), high.as_integer_ratio()
    return high, (a * d - b * c) / (b * d)


@functools.lru_cache(maxsize=256)
def exact(value: float) -> Exact:
    """A float64 as an exact number, where it is finite; kept, as most of them are 1 or a coefficient."""
    return Fraction(value) if math.isfinite(value) else value


def product(a: Exact, b: Exact) -> Exact:
    """A product of exact numbers; by the float rules where one is not finite."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a * b
    return rounded(a) * rounded(b)


def ratio(total: Exact, normaliser: Exact) -> Exact:
    """A quotient of exact numbers; by the float rules where one is not finite or 0 divides."""
    if isinstance(total, Fraction) and isinstance(normaliser, Fraction) and normaliser:
        return total / normaliser
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.float64(rounded(total)) / np.float64(rounded(normaliser)))
    # Which NaN a processor makes of 0/0 is its own affair.
    return math.nan if math.isnan(value) else value


def quotient(total: Exact, normaliser: Exact) -> np.float64:
    """The same, rounded once."""
    return np.float64(rounded(ratio(total, normaliser)))


def quotient_pair(total: Exact, normaliser: Exact) -> tuple[float, float]:
    """The same as a pair."""
    return as_pair(ratio(total, normaliser))


def total(values: np.ndarray, normaliser: float = 1.0) -> np.float64:
    """The sum of values over a normaliser, rounded once."""
    return quotient(exact_sum(values), exact(normaliser))
