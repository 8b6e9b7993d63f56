"""Exponential and logarithm between float64 and pairs, for loops over many: errors below 2^-70, tables and no loops.

e^x. With k the integer nearest to x·32/ln 2, x = k·ln(2)/32 + r, |r| ≤ ln(2)/64, and k = 32·n + i,

    e^x = 2^n·2^(i/32)·(1 + r + r²/2 + r³·P(r)),    P(r) = 1/3! + r/4! + ... + r^5/8!

2^(i/32) is a pair of a table, and so are r and r²/2. What float64 holds of the rest, r³·P(r) < 2^-22, is good to 2^-73;
the next term of the series is below 2^-77.

log m. Of m = 2^n·f, f in [1, 2), the table has a c near 1/f, and −log c as a pair. With z = c·f − 1, |z| < 2^-6.9,

    log m = n·ln 2 − log c + z − z²/2 + z³·Q(z),    Q(z) = 1/3 − z/4 + ... − z^7/10

where z and z²/2 are pairs, z³·Q(z) < 2^-22 is good to 2^-73 and the next term below 2^-79. The error is absolute.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np

from refloss import jit
from refloss.numerics.accurate import INVERSE_FACTORIALS, LN2_LOWEST
from refloss.numerics.bits import ROUND_TO_INTEGER, float64_bits, float64_from_bits, fma
from refloss.numerics.exponential import LN2_HIGH, LN2_LOW, LOG2_E
from refloss.numerics.pairs import fast_two_sum, two_product, two_sum

# Of exponentials relative to them, of logarithms absolute.
MIDDLE = 2.0**-70
_DIGITS = Context(prec=50)
_POWERS, _CENTRES = 32, 64


def _pairs(values: list[Decimal]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as pairs."""
    highs = [float(value) for value in values]
    lows = [float(_DIGITS.subtract(value, Decimal(high))) for value, high in zip(values, highs, strict=True)]
    return np.array(highs), np.array(lows)


_POWER, _POWER_LOW = _pairs([_DIGITS.power(2, Decimal(i) / _POWERS) for i in range(_POWERS)])
_INVERSE = np.array([1 / (1 + (i + 0.5) / _CENTRES) for i in range(_CENTRES)])
_LOGARITHM, _LOGARITHM_LOW = _pairs([-_DIGITS.ln(Decimal(value)) for value in _INVERSE.tolist()])


@jit.scalar
def exp_middle(high, low):
    """e^(high + low) for |high| ≤ 600, as a pair; 1 of 0."""
    shifted = fma(high, _POWERS * LOG2_E, ROUND_TO_INTEGER)
    k = shifted - ROUND_TO_INTEGER
    count = float64_bits(shifted) - float64_bits(ROUND_TO_INTEGER)
    r, r_low = two_sum(fma(-k, LN2_HIGH / _POWERS, high), fma(-k, LN2_LOW / _POWERS, low))
    square, square_low = two_product(r, r)
    c = INVERSE_FACTORIALS
    first, last = fma(c[4], r, c[3]), fma(c[6], r, c[5])
    series = fma(fma(fma(c[8], r, c[7]), square, last), square, first)
    rest = fma(r * square, series, fma(r, r_low, fma(0.5, square_low, r_low)))
    top, top_low = fast_two_sum(r, 0.5 * square)
    rest += top_low
    i = count & (_POWERS - 1)
    power, power_low = _POWER[i], _POWER_LOW[i]
    product, product_low = two_product(power, top)
    value, left = fast_two_sum(power, product)
    value, left = fast_two_sum(value, left + (fma(power, rest, fma(power_low, top, power_low)) + product_low))
    scale = float64_from_bits(((count >> 5) + 1023) << 52)
    return value * scale, left * scale


@jit.scalar
def log_middle(high, low):
    """log(high + low) of a positive pair whose high part is a normal number, as a pair."""
    bits = float64_bits(high)
    n = (bits >> 52) - 1023
    scale = float64_from_bits((1023 - n) << 52)
    i = (bits >> 46) & (_CENTRES - 1)
    inverse = _INVERSE[i]
    product, product_low = two_product(high * scale, inverse)
    z, z_low = two_sum(product - 1.0, fma(low * scale, inverse, product_low))
    square, square_low = two_product(z, z)
    first = fma(-1 / 4, z, 1 / 3)
    second, third = fma(-1 / 6, z, 1 / 5), fma(-1 / 8, z, 1 / 7)
    series = fma(fma(fma(fma(-1 / 10, z, 1 / 9), square, third), square, second), square, first)
    rest = fma(z * square, series, fma(-z, z_low, fma(-0.5, square_low, z_low)))
    k = np.float64(n)
    whole, whole_low = two_product(k, LN2_HIGH)
    whole_low += fma(k, LN2_LOW, k * LN2_LOWEST)
    power, power_low = two_sum(whole, _LOGARITHM[i])
    top, top_low = two_sum(power, z)
    value, value_low = two_sum(top, -0.5 * square)
    return fast_two_sum(value, value_low + (top_low + power_low + (rest + (whole_low + _LOGARITHM_LOW[i]))))
