"""Products of factors of any size: significands are multiplied and exponents added, so nothing is lost on the way."""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.bits import float64_bits, float64_from_bits
from refloss.numerics.exponential import scale
from refloss.numerics.formats import EXPONENT_BITS
from refloss.numerics.pairs import pair, scaled, to_odd

_ONE_BITS = 1023 << 52
# Beyond it a product of significands is 0 or infinite, and scale has reached its end.
_REACH = 2040
_LEAST_NORMAL = 2.0**-1022


@jit.scalar
def significand(value):
    """A finite number but 0 as m·2^n with 1 ≤ |m| < 2: m and n."""
    subnormal = abs(value) < _LEAST_NORMAL
    bits = float64_bits(value * 2.0**100 if subnormal else value)
    exponent = ((bits & EXPONENT_BITS) >> 52) - 1023
    return float64_from_bits((bits & ~EXPONENT_BITS) | _ONE_BITS), exponent - (100 if subnormal else 0)


@jit.scalar
def _split(value):
    """A pair as a pair whose high part is between 1 and 2, and an exponent."""
    high, exponent = significand(value[0])
    return (high, scale(value[1], -exponent)), exponent


@jit.helper
def far_product(derivative, weight, cotangent, inverse, exponent):
    """derivative·weight·cotangent·inverse·2^exponent of two pairs and two float64, as a pair; no factor is 0."""
    plain = derivative[0] * weight * cotangent * inverse[0]
    largest = max(abs(derivative[0]), abs(weight), abs(cotangent), abs(inverse[0]))
    if not largest < np.inf or plain != plain:
        return plain, 0.0
    slope, of_slope = _split(derivative)
    by, of_inverse = _split(inverse)
    first, of_weight = significand(weight)
    second, of_cotangent = significand(cotangent)
    product = scaled(scaled(scaled(slope, pair(first)), pair(second)), by)
    total = of_slope + of_weight + of_cotangent + of_inverse + exponent
    total = min(max(total, -_REACH), _REACH)
    high, low = scale(product[0], total), scale(product[1], total)
    if abs(high) < _LEAST_NORMAL:
        return scale(to_odd(product), total), 0.0
    return high, low
