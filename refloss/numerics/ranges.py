"""Powers of two that keep far weights and what divides them within the range of float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from refloss.numerics.exact import Exact

# Weights between 2^-200 and 2^200 are left as they are: pairs of them keep their low parts.
_FAR = 200
# Farther than this neither the normaliser nor the least of the weights is carried.
_MOST = 900


def near_one(weight: np.ndarray, normaliser: Exact) -> tuple[np.ndarray, Exact, int]:
    """Weights and what divides them over a power of two, exactly, and its exponent: their quotients are what they were.

    0, unless the largest weight is far from 1, and where the least of them or the normaliser would be lost.
    """
    sizes = np.abs(weight)
    size = float(sizes.max(initial=0.0))
    largest = math.frexp(size)[1]
    if not math.isfinite(size) or abs(largest) <= _FAR or not isinstance(normaliser, Fraction) or not normaliser:
        return weight, normaliser, 0
    least = math.frexp(sizes[sizes > 0].min())[1]
    of_normaliser = normaliser.numerator.bit_length() - normaliser.denominator.bit_length()
    exponent = max(of_normaliser - _MOST, min(of_normaliser + _MOST, largest))
    if least - exponent < -_MOST:
        return weight, normaliser, 0
    return np.ldexp(weight, -exponent), normaliser / Fraction(2) ** exponent, exponent
