"""Sums whose value does not depend on the order of their terms.

Two kinds. Inside a row, terms whose largest is known are put on two grids by adding a large constant; what is summed
are the integer counts, and integer addition is associative. Between rows, where terms have any size, an accumulator of
66 integers of 32 bits each covers all of float64's range, and the sum is exact. Many values at a time enter it through
grids of their own, because the grids' counts can be deposited as well.
"""

from __future__ import annotations

import numpy as np

from refloss import jit
from refloss.numerics.bits import ROUND_TO_INTEGER, float64_bits, float64_from_bits
from refloss.numerics.exponential import scale
from refloss.numerics.formats import INFINITY_BITS, magnitude_bits
from refloss.numerics.pairs import add, fast_two_sum, two_sum

# Terms in [-1, 1] become multiples of 2^-36 and, for what is left, of 2^-72. A count is at most 2^36, so those of 2^26
# terms, 2^62, fit into int64 and those of 2^27 do not; what is lost, 2^-73 a term, is 2^-56 for 2^17 terms, of which
# the largest is near 1.
COARSE_MAGIC = ROUND_TO_INTEGER * 2.0**-36
FINE_MAGIC = ROUND_TO_INTEGER * 2.0**-72
FINEST_MAGIC = ROUND_TO_INTEGER * 2.0**-108
MAX_TERMS = 2**26

LIMB_BITS = 32
# The last bit of the largest float64 is 2^971, in limb (1074 + 971)/32 = 63; limb_parts gives to the two after it, too.
LIMBS = 66
_LIMB_MASK = (1 << LIMB_BITS) - 1
# An accumulator counts in units of 1 / UNITS.
UNITS = 2**1074
# Within these exponents magic constants are normal numbers (900 + 17 ≤ 1023, −900 − 56 ≥ −1022), and the finest units
# are float64 (−900 − 108 ≥ −1074).
GRID_EXPONENTS = 900
# A short row has at most 2^12 terms, which fit two grids: multiples of 2^-50, at most 2^50 of them a term and 2^62 in
# all, and of 2^-100.
SHORT_MAGICS = ROUND_TO_INTEGER * 2.0**-50, ROUND_TO_INTEGER * 2.0**-100
# limb_parts gives a limb less than 2^32 (the two halves of the middle one have no bit in common), and 2^29·2^32 = 2^61
# fits into int64.
DEPOSITS = 2**29
_BLOCK = 2048


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


@jit.scalar
def grid_counts(term):
    """A term in [-1, 1] as counts of units on both grids; sums of them are for grid_total with terms = 0."""
    coarse, fine = grid_bits(term)
    return coarse - float64_bits(COARSE_MAGIC), fine - float64_bits(FINE_MAGIC)


@jit.helper
def grid_total(coarse, fine, terms):
    """The pair that the sums of the bits of some terms stand for; what the magics added is taken off modulo 2^64."""
    return grid_pair(coarse - terms * float64_bits(COARSE_MAGIC), fine - terms * float64_bits(FINE_MAGIC))


@jit.scalar
def grid_pair(coarse, fine):
    """The pair that sums of counts stand for, in loops over many of them."""
    high = fast_two_sum(np.float64(coarse >> 30) * 2.0**-6, np.float64(coarse & (2**30 - 1)) * 2.0**-36)
    low = two_sum(np.float64(fine >> 30) * 2.0**-42, np.float64(fine & (2**30 - 1)) * 2.0**-72)
    return add(high, low)


@jit.scalar
def long_counts(term):
    """A term in [-1, 1] as counts of units on three grids, for long_total."""
    coarse, rest = grid_step(term, COARSE_MAGIC)
    fine, rest = grid_step(rest, FINE_MAGIC)
    finest, _ = grid_step(rest, FINEST_MAGIC)
    return (
        coarse - float64_bits(COARSE_MAGIC),
        fine - float64_bits(FINE_MAGIC),
        finest - float64_bits(FINEST_MAGIC),
    )


@jit.scalar
def pair_counts(high, low):
    """A normalised pair in [-1, 1] as counts of units on three grids, for long_total."""
    coarse, rest = grid_step(high, COARSE_MAGIC)
    rest, tail = two_sum(rest, low)
    fine, rest = grid_step(rest, FINE_MAGIC)
    finest, _ = grid_step(rest + tail, FINEST_MAGIC)
    return (
        coarse - float64_bits(COARSE_MAGIC),
        fine - float64_bits(FINE_MAGIC),
        finest - float64_bits(FINEST_MAGIC),
    )


@jit.helper
def long_total(coarse, fine, finest):
    """The pair that sums of counts on three grids stand for."""
    lowest = two_sum(np.float64(finest >> 30) * 2.0**-78, np.float64(finest & (2**30 - 1)) * 2.0**-108)
    return add(grid_total(coarse, fine, 0), lowest)


@jit.helper
def unit_sum(terms):
    """The sums of the bits of a row of terms in [-1, 1] on both grids."""
    coarse = 0
    fine = 0
    for term in terms:
        coarse_bits, fine_bits = grid_bits(term)
        coarse += coarse_bits
        fine += fine_bits
    return coarse, fine


@jit.helper
def _largest(terms):
    """The largest magnitude's bits."""
    largest = 0
    for term in terms:
        bits = magnitude_bits(term)
        largest = bits if bits > largest else largest
    return largest


@jit.helper
def _special_sum(terms):
    """The sum of the terms that are not finite, in the order of the row."""
    total = 0.0
    for term in terms:
        total += term if magnitude_bits(term) >= INFINITY_BITS else 0.0
    return total


@jit.helper
def row_sum(terms):
    """The sum of a row of float64 of any size and sign, as a pair with an error below 2^-72 of the largest, a term."""
    largest = _largest(terms)
    if largest >= INFINITY_BITS:
        return _special_sum(terms), 0.0
    exponent = (largest >> 52) - 1022
    coarse = 0
    fine = 0
    for term in terms:
        coarse_bits, fine_bits = grid_bits(scale(term, -exponent))
        coarse += coarse_bits
        fine += fine_bits
    high, low = grid_total(coarse, fine, terms.size)
    return scale(high, exponent), scale(low, exponent)


@jit.helper
def long_sum(terms):
    """The same with an error below 2^-109 of the largest, a term."""
    largest = _largest(terms)
    if largest >= INFINITY_BITS:
        return _special_sum(terms), 0.0
    exponent = (largest >> 52) - 1022
    coarse, fine, finest = 0, 0, 0
    for term in terms:
        counts = long_counts(scale(term, -exponent))
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
    high, low = long_total(coarse, fine, finest)
    return scale(high, exponent), scale(low, exponent)


@jit.scalar
def exponent_of(value):
    """The least exponent with |value| < 2^exponent, but −1022 for 0 and what is subnormal; 1025 if it is not finite."""
    return (magnitude_bits(value) >> 52) - 1022


@jit.scalar
def mantissa_of(value):
    """A finite value as magnitude·2^(offset − 1074), and whether it is negative."""
    bits = float64_bits(value)
    exponent = (bits >> 52) & 0x7FF
    mantissa = bits & ((1 << 52) - 1)
    normal = exponent > 0
    return (mantissa | (1 << 52)) if normal else mantissa, bits < 0, exponent - 1 if normal else exponent


@jit.scalar
def limb_parts(magnitude, negative, offset):
    """magnitude·2^(offset − 1074), or minus that, as the first limb that it concerns, and what three limbs get."""
    shift = offset & 31
    sign = -1 if negative else 1
    low = (magnitude & _LIMB_MASK) << shift
    high = (magnitude >> LIMB_BITS) << shift
    middle = (low >> LIMB_BITS) + (high & _LIMB_MASK)
    return offset >> 5, sign * (low & _LIMB_MASK), sign * middle, sign * (high >> LIMB_BITS)


@jit.helper
def _deposit_units(magnitude, negative, offset, limbs):
    """Add magnitude·2^(offset − 1074), or take it away."""
    limb, low, middle, high = limb_parts(magnitude, negative, offset)
    limbs[limb] += low
    limbs[limb + 1] += middle
    limbs[limb + 2] += high


@jit.helper
def _deposit_values(values, limbs):
    """Add finite float64 values to the accumulator, one by one."""
    for value in values:
        magnitude, negative, offset = mantissa_of(value)
        _deposit_units(magnitude, negative, offset, limbs)


@jit.scalar
def counts_below(value, exponent):
    """Counts of a value below 2^exponent on three grids, and what is left of it; |exponent| ≤ 900."""
    shift = exponent << 52
    coarse_magic = float64_from_bits(float64_bits(COARSE_MAGIC) + shift)
    fine_magic = float64_from_bits(float64_bits(FINE_MAGIC) + shift)
    finest_magic = float64_from_bits(float64_bits(FINEST_MAGIC) + shift)
    coarse, rest = grid_step(value, coarse_magic)
    fine, rest = grid_step(rest, fine_magic)
    finest, rest = grid_step(rest, finest_magic)
    return (
        coarse - float64_bits(coarse_magic),
        fine - float64_bits(fine_magic),
        finest - float64_bits(finest_magic),
        rest,
    )


@jit.helper
def _counted(values, exponent):
    """Counts of the values, all below 2^exponent, on three grids; values become what is left of them."""
    coarse_magic = float64_from_bits(float64_bits(COARSE_MAGIC) + (exponent << 52))
    fine_magic = float64_from_bits(float64_bits(FINE_MAGIC) + (exponent << 52))
    finest_magic = float64_from_bits(float64_bits(FINEST_MAGIC) + (exponent << 52))
    coarse, fine, finest, left = 0, 0, 0, 0
    for i in range(values.size):
        bits, rest = grid_step(values[i], coarse_magic)
        coarse += bits
        bits, rest = grid_step(rest, fine_magic)
        fine += bits
        bits, rest = grid_step(rest, finest_magic)
        finest += bits
        values[i] = rest
        left |= magnitude_bits(rest)
    coarse -= values.size * float64_bits(coarse_magic)
    fine -= values.size * float64_bits(fine_magic)
    finest -= values.size * float64_bits(finest_magic)
    return coarse, fine, finest, left != 0


@jit.helper
def add_exactly(values, limbs):
    """Add a row of at most 2^26 float64, which it spoils, to the accumulator; the sum of those that are not finite.

    Values within 2^-55 of the row's largest fit three grids, which costs less than half a nanosecond each; what they
    leave goes onto three finer ones.
    """
    largest = 0
    for i in range(values.size):
        bits = magnitude_bits(values[i])
        largest = bits if bits > largest else largest
    if largest >= INFINITY_BITS:
        special = 0.0
        for value in values:
            special += value if magnitude_bits(value) >= INFINITY_BITS else 0.0
        return special
    exponent = (largest >> 52) - 1022
    left = largest != 0
    while left and abs(exponent) < GRID_EXPONENTS:
        coarse, fine, finest, left = _counted(values, exponent)
        for count, unit in ((coarse, -36), (fine, -72), (finest, -108)):
            _deposit_units(abs(count), count < 0, 1074 + exponent + unit, limbs)
        exponent -= 108
    if left:
        _deposit_values(values, limbs)
    return 0.0


@jit.scalar
def short_magics(exponent):
    """The constants of the two grids for a short row of terms below 2^exponent; |exponent| ≤ 900."""
    coarse, fine = float64_bits(SHORT_MAGICS[0]), float64_bits(SHORT_MAGICS[1])
    return float64_from_bits(coarse + (exponent << 52)), float64_from_bits(fine + (exponent << 52))


@jit.scalar
def short_counts(term, magics):
    """Counts of a term on both grids of a short row, and what is left of it."""
    coarse, rest = grid_step(term, magics[0])
    fine, rest = grid_step(rest, magics[1])
    return coarse - float64_bits(magics[0]), fine - float64_bits(magics[1]), rest


@jit.helper
def deposit_short(coarse, fine, exponent, limbs):
    """Add a short row to the accumulator, from the sums of its counts."""
    _deposit_units(abs(coarse), coarse < 0, 1074 + exponent - 50, limbs)
    _deposit_units(abs(fine), fine < 0, 1074 + exponent - 100, limbs)


@jit.kernel
def deposit_all(values, limbs):
    """Add any number of float64 values, at most DEPOSITS, to the accumulator; the sum of those that are not finite."""
    special = 0.0
    block = np.empty(_BLOCK)
    for start in range(0, values.size, _BLOCK):
        part = block[: min(_BLOCK, values.size - start)]
        # A slice assignment compiles its error messages as well.
        for i in range(part.size):
            part[i] = values[start + i]
        special += add_exactly(part, limbs)
    return special


@jit.helper
def carry(limbs):
    """Leave 32 bits in every limb but the last, which has the sign."""
    for index in range(LIMBS - 1):
        upper = limbs[index] >> LIMB_BITS
        limbs[index] -= upper << LIMB_BITS
        limbs[index + 1] += upper


@jit.helper
def limbs_pair(limbs):
    """What an accumulator holds, at least 0, as a pair."""
    carry(limbs)
    total = (0.0, 0.0)
    for index in range(LIMBS - 1, -1, -1):
        if limbs[index] != 0:
            total = add(total, (scale(np.float64(limbs[index]), LIMB_BITS * index - 1074), 0.0))
    return total


def accumulated(limbs: np.ndarray) -> int:
    """What an accumulator holds, in units of 2^-1074."""
    total = 0
    for index in limbs.nonzero()[0].tolist():
        total += int(limbs[index]) << (LIMB_BITS * index)
    return total
