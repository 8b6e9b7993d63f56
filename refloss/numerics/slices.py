"""Slices: numbers cut into parts of so few bits that float64 adds products of them without an error, in any order.

A number below 1 is the sum of slices, the first a multiple of 2^(1 − b), each of the next finer by b bits; what is left
of a number beside each is at most half a unit, so that every slice is an integer of b − 1 bits and a sign, times its
unit. A sum of CHUNK products of two slices is an integer of 2·(b − 1) + log2 CHUNK ≤ 53 bits: a matrix product of
slices is exact on any BLAS, whatever it adds first and whether or not it fuses.

Source: Ozaki, Ogita, Oishi, Rump, "Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication and its applications", Numerical Algorithms 59, 2012.
"""

from __future__ import annotations

from refloss import jit
from refloss.numerics.bits import ROUND_TO_INTEGER
from refloss.numerics.exponential import scale

# The terms that one matrix product adds up.
CHUNK = 2048
# At most so many slices are dense; what they leave of a number is a term of its own.
MOST_SLICES = 4
# b: 2·21 + 11 = 53.
BITS = 22
# A slice's part of a number that is this small is nothing; nor is such a number cut.
FARTHEST = 2.0**-300


@jit.scalar
def slice_magic(index):
    """What rounds a number to the grid of a slice when it is added and taken away."""
    return scale(ROUND_TO_INTEGER, 1 - BITS * (index + 1))


@jit.scalar
def is_far(value, scaled):
    """Whether a number that has been scaled to its row is none to be cut: not finite, or too small beside the row's."""
    return (value != 0.0) & ~((abs(scaled) >= FARTHEST) & (abs(scaled) <= 1.0))
