"""Sums whose value does not depend on the order of their terms.

Two kinds. Inside a row, terms of known size are put on two fixed grids by adding a large constant; what is summed are
the integer counts, and integer addition is associative. Between rows, where terms have any size, an accumulator of 66
integers of 32 bits each covers all of float64's range, and the sum is exact.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from refloss import jit
from refloss.numerics.bits import ROUND_TO_INTEGER, float64_bits
from refloss.numerics.exponential import scale
from refloss.numerics.formats import INFINITY_BITS, magnitude_bits
from refloss.numerics.pairs import add, fast_two_sum, two_sum

# Terms in [-1, 1] become multiples of 2^-36 and, for what is left, of 2^-72. The counts of 2^26 terms fit into int64,
# and what is lost, 2^-73 a term, is below 2^-56 of a sum of 2^17 terms whose largest is near 1.
COARSE_MAGIC = ROUND_TO_INTEGER * 2.0**-36
FINE_MAGIC = ROUND_TO_INTEGER * 2.0**-72
MAX_TERMS = 2**26

LIMB_BITS = 32
LIMBS = 66
_LIMB_MASK = (1 << LIMB_BITS) - 1
# A deposit adds less than 2^33 to a limb, so this many leave room for the sign.
_DEPOSITS = 2**29


@jit.scalar
def grid_step(term, magic):
    """A term as a count of units, on top of the bits of their magic constant, and what is left of it."""
    shifted = term + magic
    return float64_bits(shifted), term - (shifted - magic)


@jit.scalar
def grid_bits(term):
    """A term in [-1, 1] on both grids."""
    coarse, rest = grid_step(term, COARSE_MAGIC)
    fine, _ = grid_step(rest, FINE_MAGIC)
    return coarse, fine


@jit.helper
def grid_total(coarse, fine, terms):
    """The pair that the sums of the bits of some terms stand for; what the magics added is taken off modulo 2^64."""
    coarse -= terms * float64_bits(COARSE_MAGIC)
    fine -= terms * float64_bits(FINE_MAGIC)
    high = fast_two_sum(np.float64(coarse >> 30) * 2.0**-6, np.float64(coarse & (2**30 - 1)) * 2.0**-36)
    low = two_sum(np.float64(fine >> 30) * 2.0**-42, np.float64(fine & (2**30 - 1)) * 2.0**-72)
    return add(high, low)


@jit.helper
def row_sum(terms):
    """The sum of a row of float64 of any size and sign, as a pair with an error below 2^-72 of the largest, a term."""
    largest = 0
    for term in terms:
        bits = magnitude_bits(term)
        largest = bits if bits > largest else largest
    if largest >= INFINITY_BITS:
        total = 0.0
        for term in terms:
            total += term if magnitude_bits(term) >= INFINITY_BITS else 0.0
        return total, 0.0
    exponent = (largest >> 52) - 1022
    coarse = 0
    fine = 0
    for term in terms:
        coarse_bits, fine_bits = grid_bits(scale(term, -exponent))
        coarse += coarse_bits
        fine += fine_bits
    high, low = grid_total(coarse, fine, terms.size)
    return scale(high, exponent), scale(low, exponent)


@jit.kernel
def _deposit(values, limbs):
    """Add float64 values to the accumulator; true if all of them were finite."""
    finite = True
    for value in values:
        bits = float64_bits(value)
        exponent = (bits >> 52) & 0x7FF
        finite &= exponent < 0x7FF
        mantissa = bits & ((1 << 52) - 1)
        if exponent > 0:
            mantissa |= 1 << 52
            exponent -= 1
        limb = exponent >> 5
        shift = exponent & 31
        sign = -1 if bits < 0 else 1
        low = (mantissa & _LIMB_MASK) << shift
        high = (mantissa >> LIMB_BITS) << shift
        limbs[limb] += sign * (low & _LIMB_MASK)
        limbs[limb + 1] += sign * ((low >> LIMB_BITS) + (high & _LIMB_MASK))
        limbs[limb + 2] += sign * (high >> LIMB_BITS)
    return finite


def exact_sum(values: np.ndarray) -> Fraction | float:
    """The exact sum of float64 values; a float where one of them is not finite."""
    total = 0
    flat = np.ascontiguousarray(values, dtype=np.float64).reshape(-1)
    for start in range(0, flat.size, _DEPOSITS):
        limbs = np.zeros(LIMBS, dtype=np.int64)
        if not _deposit(flat[start : start + _DEPOSITS], limbs):
            with np.errstate(invalid="ignore"):
                return float(np.sum(flat[~np.isfinite(flat)]))
        total += sum(int(limb) << (LIMB_BITS * place) for place, limb in enumerate(limbs))
    return Fraction(total, 2**1074)


def rounded(value: Fraction | float) -> float:
    """The float64 nearest to a number."""
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def as_pair(value: Fraction | float) -> tuple[float, float]:
    """A number as high + low, both float64."""
    high = rounded(value)
    if not math.isfinite(high):
        return high, 0.0
    return high, float(Fraction(value) - Fraction(high))
