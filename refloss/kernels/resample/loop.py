"""Bilinear resampling of planes, and its adjoint.

Along an axis of n elements resampled to N, output J lies at s = (J + 1/2)·n/N − 1/2, held between 0 and n − 1, between
elements i = ⌊s⌋ and i + 1, with weights 1 − λ and λ = s − i. They are k/R and (R − k)/R for integers k and R, and are
kept without R, which is divided by once both axes are done: sums of products with integers are exact for the narrower
formats, so that what is equal stays equal. Between elements that are as large as they are different, float64 would lose
what a softmax asks for: results are pairs.

An element with the weight 0 is not looked at: it may be NaN or infinite.

The adjoint hands each output's cotangent back to the two elements with the same weights. It adds in the order of the
outputs, plane by plane, so that threads cannot change it.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load
from refloss.numerics.bits import fma
from refloss.numerics.exact import as_pair
from refloss.numerics.pairs import fast_two_sum, multiply, rounded, times, two_product, two_sum


class Axis(NamedTuple):
    """Where each output of an axis lies: elements first and second, and whole times their weights, at most 1."""

    first: np.ndarray
    second: np.ndarray
    near: np.ndarray  # of the first
    far: np.ndarray  # of the second, 0 where it is the first
    starts: np.ndarray  # the outputs between elements i and i + 1 are starts[i] ... starts[i + 1]
    whole: float  # what weights add up to, more than 1/2

    @property
    def reach(self) -> int:
        """The most outputs that an element has a share in."""
        return int((self.starts[2:] - self.starts[:-2]).max(initial=int(self.starts[1] - self.starts[0])))


@functools.lru_cache(maxsize=16)
def axis(size: int, resized: int) -> Axis:
    """Where resized outputs lie among size elements, from integers, without rounding; kept for the next image."""
    outputs, unit = np.arange(resized, dtype=np.int64), max(2 * resized, 1)
    numerator = np.clip((2 * outputs + 1) * size - resized, 0, max(size - 1, 0) * unit)
    first, far = numerator // unit, numerator % unit
    shared = int(np.gcd.reduce(far, initial=unit))
    whole, far = unit // shared, far // shared
    # A power of two, so that products with large elements stay in range and none is rounded.
    power = 1 << (whole - 1).bit_length()
    second = np.where(far == 0, first, first + 1)
    starts = np.searchsorted(first, np.arange(size + 1))
    return Axis(first, second, (whole - far) / power, far / power, starts, whole / power)


def inverse(vertical: Axis, horizontal: Axis) -> tuple[float, float]:
    """What a resampled plane is to be multiplied by, a pair."""
    return as_pair(1 / (Fraction(vertical.whole) * Fraction(horizontal.whole)))


@jit.scalar
def between(low, high, near, far):
    """near·low + far·high of two pairs, as a normalised pair; high has no part in it where far is 0."""
    a, a_low = two_product(low[0], near)
    b, b_low = two_product(high[0], far)
    a_low = fma(low[1], near, a_low)
    b_low = fma(high[1], far, b_low)
    alone = far == 0.0
    plain, rest = two_sum(a, 0.0 if alone else b)
    high_part, low_part = fast_two_sum(plain, rest + (a_low + (0.0 if alone else b_low)))
    # Infinities leave nothing to correct.
    known = low_part == low_part
    return high_part if known else plain, low_part if known else 0.0


@jit.scalar
def with_share(total, value, weight):
    """A total with what an output hands back to an element."""
    return fma(value, weight, total)


@jit.scalar
def scaled_total(total, scale):
    """What an element gets, with the scale that the outputs left out."""
    return times(total, scale)


@jit.helper
def _between_neighbours(high, low, near, far):
    """From the first and the second element of each output to the pair between them."""
    for x in range(high.size):
        high[x], low[x] = between((high[x], 0.0), (low[x], 0.0), near[x], far[x])


@jit.helper
def widen_line(line, horizontal, high, low):
    """A line of elements, resampled: pairs, times the axis's whole."""
    for x in range(high.size):
        high[x], low[x] = line[horizontal.first[x]], line[horizontal.second[x]]
    _between_neighbours(high, low, horizontal.near, horizontal.far)


@jit.helper
def widen_plane(planes, plane, horizontal, line, wide):
    """A plane, resampled along its lines: [2, h, W], the high and the low parts."""
    for y in range(wide.shape[1]):
        load(planes, (plane * wide.shape[1] + y) * line.size, line)
        widen_line(line, horizontal, wide[0, y], wide[1, y])


@jit.helper
def between_lines(first, first_low, second, second_low, near, far, high, low):
    """Output line between two widened lines: pairs."""
    for i in range(high.size):
        high[i], low[i] = between((first[i], first_low[i]), (second[i], second_low[i]), near, far)


@jit.helper
def _between_rounded(first, first_low, second, second_low, near, far, scale, row):
    whole = scale[0] == 1.0
    for i in range(row.size):
        value = between((first[i], first_low[i]), (second[i], second_low[i]), near, far)
        row[i] = rounded(value if whole else multiply(value, scale))


@jit.helper
def resampled_line(wide, vertical, y, scale, row):
    """Output line y of a widened plane, rounded once; scale is the axes' inverse."""
    i, j = vertical.first[y], vertical.second[y]
    near, far = vertical.near[y], vertical.far[y]
    _between_rounded(wide[0, i], wide[1, i], wide[0, j], wide[1, j], near, far, scale, row)


@jit.kernel
def resample_planes(planes, vertical, horizontal, scale, height, width, resized, first, last):
    """resized[p] from plane p of height × width, for planes first ... last."""
    wide = np.empty((2, height, resized.shape[2]))
    line = np.empty(width)
    for p in range(first, last):
        widen_plane(planes, p, horizontal, line, wide)
        for y in range(resized.shape[1]):
            resampled_line(wide, vertical, y, scale, resized[p, y])


@jit.helper
def _add_scaled(row, weight, total):
    for i in range(row.size):
        total[i] = with_share(total[i], row[i], weight)


@jit.helper
def spread_line(row, vertical, y, wide):
    """The adjoint of resampled_line, without the scale, added to what is there."""
    _add_scaled(row, vertical.near[y], wide[vertical.first[y]])
    if vertical.far[y] != 0.0:
        _add_scaled(row, vertical.far[y], wide[vertical.second[y]])


@jit.helper
def narrowed_line(line, horizontal, result):
    """What outputs of a line hand back along it."""
    after = 0.0
    for j in range(result.size):
        total, after = after, 0.0
        for x in range(horizontal.starts[j], horizontal.starts[j + 1]):
            total = with_share(total, line[x], horizontal.near[x])
            if horizontal.far[x] != 0.0:
                after = with_share(after, line[x], horizontal.far[x])
        result[j] = total
