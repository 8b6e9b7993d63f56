"""Between matrix products of slices: numbers are cut, counts added, and what is not worth a matrix is added apart.

A factor is a matrix of numbers, cut row by row relative to the row's largest: A_ik = 2^(e_i)·Σ_s A_s,ik + R_ik, where
few R_ik are not 0. Products of slices s and t, counted from 1, are multiples of 2^(2 − b·(s + t)): those of one s + t
are a level, which is summed exactly. Where a sum may have more than 53 bits, it is kept in two parts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import AnyRows, load, load_strided, row_offset, save_strided
from refloss.numerics.bits import ROUND_TO_INTEGER
from refloss.numerics.exponential import scale
from refloss.numerics.formats import INFINITY_BITS, magnitude_bits, round_to_precision
from refloss.numerics.pairs import add, multiply, normalised, pair, to_odd, two_product, two_sum
from refloss.numerics.slices import MOST_SLICES, is_far, slice_magic
from refloss.numerics.sums import exponent_of

# Exponents of what has none: 0; and what makes all that it is added to infinite, or undefined.
NO_REACH, INFINITE, UNDEFINED = -4096, 1 << 19, 1 << 20
# What scale takes.
_REACH = 2040
# Of the terms of a sum of pairs: below it there are only the errors of the pairs, of which each term adds some.
_NOISE, _NOISE_OF_TERM = 2.0**-90, 2.0**-103
# A pair's low part is below it, beside the high part.
_HALF_UNIT = 2.0**-53
_LEFT_OVER = 2.0**-54
# What is closer to a float64 than this is that number, which only the errors of pairs make another.
_SHORT = 2.0**-96
# Of the 53 bits of a product's unit, so many are kept in the lower part.
HALF = 2.0**26


class Sliced(NamedTuple):
    """Rows of a factor [m, K], cut."""

    rows: AnyRows  # of all of the factor
    first: int  # of its rows, the first of these
    slices: np.ndarray  # [d, m, K] float64, A_s
    exponents: np.ndarray  # [m] int64, e
    rest_index: np.ndarray  # [m, K] int32: where in the row the first rest_count are that have a rest
    rest_value: np.ndarray  # [m, K] float64, R
    rest_count: np.ndarray  # [m] int64


class Rounding(NamedTuple):
    """The format that logits are written down in: bits that float64 has beside it, exponents of its ends."""

    dropped: int  # −1: they are not
    smallest: int
    largest: float


@jit.helper
def _load_row(rows, index, row):
    load_strided(rows, row_offset(rows, index), rows.class_stride, row)


@jit.helper
def _exponent_of_row(row):
    """Of its largest finite number."""
    largest = 0
    for value in row:
        bits = magnitude_bits(value)
        largest = bits if (bits > largest) & (bits < INFINITY_BITS) else largest
    return (largest >> 52) - 1022


@jit.helper
def _scaled_row(row, exponent, x):
    """A row times a power of two, 0 where a number is not to be cut; whether all of them are."""
    far = 0
    for k in range(row.size):
        value = scale(row[k], -exponent)
        beyond = is_far(row[k], value)
        far += 1 if beyond else 0
        x[k] = 0.0 if beyond else value
    return far == 0


@jit.helper
def _depth(x, allowed):
    """How many slices leave no more than some numbers a rest."""
    for s in range(MOST_SLICES - 1):
        magic = slice_magic(s)
        count = 0
        for k in range(x.size):
            count += 1 if ((x[k] + magic) - magic) != x[k] else 0
        if count <= allowed:
            return s + 1
    return MOST_SLICES


@jit.kernel
def cut_rows(first, last, allowed, depths, cut, row, x):
    """Exponents, slices and rests of rows first ... last."""
    for i in range(first, last):
        _load_row(cut.rows, cut.first + i, row)
        exponent = _exponent_of_row(row)
        cut.exponents[i] = exponent
        all_near = _scaled_row(row, exponent, x)
        depths[i] = _depth(x, allowed)
        left = 0
        for s in range(depths[i]):
            magic, line = slice_magic(s), cut.slices[s, i]
            left = 0
            for k in range(row.size):
                part = (x[k] + magic) - magic
                line[k] = part
                x[k] -= part
                left += 1 if x[k] != 0.0 else 0
        count = 0
        if left > 0 or not all_near:
            for k in range(row.size):
                far = is_far(row[k], scale(row[k], -exponent))
                if (x[k] != 0.0) | far:
                    cut.rest_index[i, count] = k
                    cut.rest_value[i, count] = row[k] if far else scale(x[k], exponent)
                    count += 1
        cut.rest_count[i] = count


@jit.kernel
def clear_slices(slices, depths, first, last):
    """Slices that rows first ... last do not have, and others do."""
    for i in range(first, last):
        for s in range(depths[i], slices.shape[0]):
            line = slices[s, i]
            for k in range(line.size):
                line[k] = 0.0


@jit.kernel
def add_products(products, unit, upper, lower, first, last):
    """Add rows of products of slices to sums of their upper and their lower bits, both exact."""
    magic = ROUND_TO_INTEGER * unit * HALF
    for i in range(first, last):
        source, above, below = products[i], upper[i], lower[i]
        for j in range(source.size):
            part = (source[j] + magic) - magic
            above[j] += part
            below[j] += source[j] - part


@jit.helper
def _sum_levels(levels, i, top, tail):
    """Elements of row i, pairs, from the sums of their levels."""
    for j in range(top.size):
        top[j], tail[j] = 0.0, 0.0
    wide = levels.shape[1] > 1
    for level in range(levels.shape[0]):
        lower, upper = levels[level, 0, i], levels[level, levels.shape[1] - 1, i]
        for j in range(top.size):
            part = two_sum(upper[j], lower[j]) if wide else (lower[j], 0.0)
            top[j], tail[j] = add((top[j], tail[j]), part)


@jit.scalar
def _scaled(a, exponent):
    """A pair times a power of two."""
    exponent = min(max(exponent, -_REACH), _REACH)
    high, low = normalised((scale(a[0], exponent), scale(a[1], exponent)))
    # What is infinite has no low part, which may be infinite with the other sign.
    whole = scale(a[0], exponent)
    finite = abs(whole) < np.inf
    return (high if finite else whole), (low if finite else 0.0)


@jit.scalar
def _added(total, a, b):
    """total + a·b for a pair and two numbers; what is not finite, as float64 has it.

    Where the total is beyond float64, a part of one of its terms that is, too, may have the other sign: it counts not.
    """
    plain = a * b
    _high, low = two_product(a, b)
    beyond = (abs(plain) == np.inf) & (abs(a) < np.inf) & (abs(b) < np.inf)
    plain = 0.0 if beyond & (abs(total[0]) == np.inf) else plain
    return add(total, (plain, low if abs(plain) < np.inf and not beyond else 0.0))


@jit.helper
def _written(z, rounding):
    """A pair as it is in a format that it is written down in."""
    value = z[0] if rounding.dropped == 0 else round_to_precision(to_odd(z), rounding.dropped, rounding.smallest)
    over = abs(value) > rounding.largest
    return (np.copysign(np.inf, value) if over else value), 0.0


@jit.helper
def _add_rest_of_left(left, right, i, high, low, lane):
    """Add R_ik·B_jk to element i, j for every j whose B_jk is finite."""
    for entry in range(left.rest_count[i]):
        k, value = left.rest_index[i, entry], left.rest_value[i, entry]
        load(right.rows, right.first, lane, k * right.rows.class_stride)
        for j in range(lane.size):
            if abs(lane[j]) < np.inf:
                high[j], low[j] = _added((high[j], low[j]), value, lane[j])


@jit.helper
def _add_rest_of_right(left, right, i, row, high, low):
    """Add (A − R)_ik·S_jk to element i, j for every j, S being the rest of the right factor.

    What is not finite is multiplied by A_ik as a whole: parts of either sign would make it no number.
    """
    loaded = False
    for j in range(high.size):
        for entry in range(right.rest_count[j]):
            if not loaded:
                _load_row(left.rows, left.first + i, row)
                loaded = True
            k, value = right.rest_index[j, entry], right.rest_value[j, entry]
            if not abs(value) < np.inf:
                high[j], low[j] = _added((high[j], low[j]), row[k], value)
                continue
            known = 0.0
            for s in range(left.slices.shape[0]):
                known += left.slices[s, i, k]
            # What has no slice is in the left one's rest, whose product has been added.
            if (known != 0.0) | (row[k] == 0.0):
                known = scale(known, left.exponents[i])
                high[j], low[j] = _added((high[j], low[j]), known, value)


@jit.kernel
def complete(levels, left, right, bias, rounding, high, low, column, first, last):
    """Elements of rows first ... last, as pairs, from sums and rests: columns column, column + 1, ... of them."""
    size = levels.shape[3]
    lane, row = np.empty(size), np.empty(left.slices.shape[2])
    for i in range(first, last):
        top, tail = high[i][column : column + size], low[i][column : column + size]
        _sum_levels(levels, i, top, tail)
        for j in range(size):
            top[j], tail[j] = _scaled((top[j], tail[j]), left.exponents[i] + right.exponents[j])
        _add_rest_of_left(left, right, i, top, tail, lane)
        _add_rest_of_right(left, right, i, row, top, tail)
        if bias.size:
            for j in range(size):
                top[j], tail[j] = add((top[j], tail[j]), pair(bias[right.first + j]))
        if rounding.dropped >= 0:
            for j in range(size):
                top[j], tail[j] = _written((top[j], tail[j]), rounding)


@jit.scalar
def _reach(value, exponent):
    bits = magnitude_bits(value)
    reach = exponent_of(value) + exponent if bits else NO_REACH
    return reach if bits < INFINITY_BITS else (INFINITE if bits == INFINITY_BITS else UNDEFINED)


@jit.kernel
def row_reaches(high, exponents, reaches, first, last):
    """The largest exponent of g_ij·2^(e_j) in each of rows first ... last."""
    for i in range(first, last):
        reach = NO_REACH
        for j in range(exponents.size):
            reach = max(reach, _reach(high[i, j], exponents[j]))
        reaches[i] = reach


@jit.kernel
def column_reaches(high, exponents, column, reaches, first, last):
    """The largest exponent of g_ij·2^(e_i) in each of columns column + first ... column + last."""
    for i in range(exponents.size):
        for j in range(first, last):
            reaches[j] = max(reaches[j], _reach(high[i, column + j], exponents[i]))


@jit.kernel
def cut_pairs(high, low, row, column, row_shift, column_shift, slices, first, last):
    """Slices of the pairs g_ij·2^(shifts) from a row and a column on; what is not finite has none."""
    depth, width = slices.shape[0], slices.shape[2]
    rest = np.empty((2, width))
    above, below = rest[0], rest[1]
    for i in range(first, last):
        top, tail = high[row + i][column : column + width], low[row + i][column : column + width]
        for j in range(width):
            shift = min(max(row_shift[i] + column_shift[j], -_REACH), _REACH)
            # A whole row or column without a number that could be cut.
            void = (magnitude_bits(top[j]) >= INFINITY_BITS) | (abs(row_shift[i]) >= INFINITE)
            void |= abs(column_shift[j]) >= INFINITE
            above[j] = 0.0 if void else scale(top[j], shift)
            below[j] = 0.0 if void else scale(tail[j], shift)
        for s in range(depth):
            magic, line = slice_magic(s), slices[s, i]
            for j in range(width):
                part = (above[j] + magic) - magic
                line[j] = part
                above[j], below[j] = two_sum(above[j] - part, below[j])


@jit.kernel
def add_rests(high, low, row, column, transposed, cut, having, top, tail, first, last):
    """Add g_ij·R_jk to elements i, k, for i of first ... last and the rows j of a factor that have a rest."""
    for i in range(first, last):
        for j in having:
            y, x = (row + j, column + i) if transposed else (row + i, column + j)
            g, g_low = high[y, x], low[y, x]
            for entry in range(cut.rest_count[j]):
                k, value = cut.rest_index[j, entry], cut.rest_value[j, entry]
                total = _added((top[i, k], tail[i, k]), g, value)
                # What is infinite has been added: 0 times it would not be a number.
                top[i, k], tail[i, k] = _added(total, g_low, value) if abs(value) < np.inf else total


@jit.kernel
def raise_rests(cut, having, largest):
    """Have the largest numbers of columns, relative to their rows, count what has a rest."""
    for j in having:
        for entry in range(cut.rest_count[j]):
            k = cut.rest_index[j, entry]
            size = abs(scale(cut.rest_value[j, entry], -cut.exponents[j]))
            largest[k] = max(largest[k], min(max(size, 2.0**-1000), 1.0))


@jit.helper
def _mark(top, errors, precision, again):
    """Which elements of a row may be rounded wrong, being off by their errors."""
    if precision.dropped == 0:
        for k in range(top.size):
            again[k] = (errors[k] > _LEFT_OVER * abs(top[k])) & (abs(top[k]) < np.inf)
        return
    for k in range(top.size):
        off = errors[k] + 2.0 * _HALF_UNIT * abs(top[k])
        below = round_to_precision(top[k] - off, precision.dropped, precision.smallest)
        above = round_to_precision(top[k] + off, precision.dropped, precision.smallest)
        again[k] = (below != above) & (abs(top[k]) < np.inf)


@jit.kernel
def finish(levels, rests, reaches, largest, error, precision, top, tail, again, first, last):
    """Elements from their sums and those of rests, and which have to be computed again, as they may be rounded wrong.

    error is what the sums of an element may lack for each unit of the largest number of its column.
    """
    errors = np.empty(largest.size)
    for i in range(first, last):
        reach = reaches[i]
        high, low = top[i], tail[i]
        if reach >= INFINITE:
            high[:] = np.nan
            low[:] = 0.0
            again[i][:] = reach < UNDEFINED
            continue
        _sum_levels(levels, i, high, low)
        reach = min(max(reach, -_REACH), _REACH)
        for k in range(high.size):
            high[k], low[k] = _scaled((high[k], low[k]), reach)
            errors[k] = scale(error * largest[k], reach)
        if rests.size:
            for k in range(high.size):
                kept = (abs(high[k]) == np.inf) & (abs(rests[0, i, k]) == np.inf)
                rest = (0.0, 0.0) if kept else (rests[0, i, k], rests[1, i, k])
                high[k], low[k] = add((high[k], low[k]), rest)
        _mark(high, errors, precision, again[i])


@jit.helper
def _sum_of_products(high, low, row, column, step_row, step_column, lane):
    """Σ_j g_j·w_j in pairs, one after the other, and the sum of the magnitudes."""
    total, size = (0.0, 0.0), 0.0
    for j in range(lane.size):
        y, x = row + j * step_row, column + j * step_column
        g = (high[y, x], low[y, x])
        # Rows that do not count may hold anything.
        if g[0] == 0.0:
            continue
        term = multiply(g, pair(lane[j]))
        total = add(total, term)
        size += abs(term[0])
    return total, size


@jit.scalar
def _without_noise(total, size, terms):
    """0 where only the errors of pairs are left of a sum of terms."""
    nothing = (abs(total[0]) <= (_NOISE + terms * _NOISE_OF_TERM) * size) & (size < np.inf)
    return (0.0 if nothing else total[0]), (0.0 if nothing else total[1])


@jit.kernel
def compute_again(high, low, column, transposed, rows, again, top, tail, lane, first, last):
    """Elements of columns first ... last of a product with a factor as sums of pairs."""
    for k in range(first, last):
        loaded = False
        for i in range(top.shape[0]):
            if not again[i, k]:
                continue
            if not loaded:
                load(rows, 0, lane, k * rows.class_stride)
                loaded = True
            if transposed:
                total, size = _sum_of_products(high, low, 0, column + i, 1, 0, lane)
            else:
                total, size = _sum_of_products(high, low, i, 0, 0, 1, lane)
            top[i, k], tail[i, k] = _without_noise(total, size, lane.size)


@jit.kernel
def column_sums(high, low, column, top, tail, first, last):
    """Sums of columns column + first ... column + last of pairs, as pairs."""
    size = np.zeros(last - first)
    for i in range(high.shape[0]):
        for j in range(first, last):
            top[j], tail[j] = add((top[j], tail[j]), (high[i, column + j], low[i, column + j]))
            size[j - first] += abs(high[i, column + j])
    for j in range(first, last):
        top[j], tail[j] = _without_noise((top[j], tail[j]), size[j - first], high.shape[0])


@jit.kernel
def save_rows_of_pairs(top, tail, rows, start, first, last):
    """Rows first ... last of normalised pairs, which it spoils, rounded to rows start + first ... of any format."""
    for i in range(first, last):
        high, low = top[i], tail[i]
        if rows.format != 0:
            for k in range(high.size):
                high[k] = to_odd((high[k], low[k] if abs(low[k]) >= _SHORT * abs(high[k]) else 0.0))
        save_strided(high, rows, row_offset(rows, start + i), rows.class_stride)
