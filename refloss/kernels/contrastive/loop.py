"""Cross-entropies of the rows and the columns of a square matrix, whose labels are the diagonal.

A gradient element belongs to a row and to a column, and is rounded once from the sum of both slopes,

    c_i·(p_ij − q_ij) + c_j·(p'_ij − q_ij)

with p the softmax of row i, p' that of column j and q the smoothed diagonal. Rows and columns are split
(softmax/split.py) into their label and the others, so that on the diagonal p − 1 is minus the sum of the others. Those
splits are all that is kept of them: the elements come from a second reading of the matrix, which needs its exponentials
twice.

Nothing cancels without smoothing where all cotangents have one sign. Where little is left of a sum, its row and its
column are split again in pairs, and the element is computed from these. So is one whose row and column hold equal
numbers alone: it is a rational number, perhaps a tie.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_tile, save_tile
from refloss.kernels.softmax.refine import CROWD, NOTHING, accurate_term, is_close, is_near, is_whole, kept, known
from refloss.kernels.softmax.split import difference, split_softmax
from refloss.numerics.exponential import exp_difference
from refloss.numerics.pairs import add, divide, multiply, negate, pair, scaled
from refloss.numerics.sums import long_sum, row_sum

# What is kept of a row, or of a column: what its exponentials are relative to; p of the others over their exponentials;
# p of the label; 1 − p of it; and whether all its numbers are equal. All but the first and the last are pairs.
REFERENCE, TERM, SHARE, REST, WHOLE, LINES = 0, 1, 3, 5, 7, 8
# Which elements of a row are computed again: none, those that are close, or all of them.
SOME, ALL = 1, 2


class Smoothing(NamedTuple):
    """Pairs: 1 − ε, ε/N, the mass of a label and that of all others."""

    keep: tuple[float, float]
    uniform: tuple[float, float]
    label: tuple[float, float]
    others: tuple[float, float]
    smooth: bool


class Upstream(NamedTuple):
    """Cotangents [N] or [1], and twice what their loss is divided by, a pair."""

    cotangent: np.ndarray
    normaliser: tuple[float, float]


class Written(NamedTuple):
    """Of rows, or of columns: how they are split [LINES, N], and what their pairs lose, pairs [2, N]."""

    side: np.ndarray
    losses: np.ndarray


class Accurate(NamedTuple):
    """Of rows, or of columns: how they are split, how in pairs, and which of them are to be so."""

    side: np.ndarray
    accurate: np.ndarray
    flags: np.ndarray


class Sides(NamedTuple):
    """Rows and columns as they are split, each [LINES, N]; in pairs as far as wanted, and which those are, each [N].

    near is how many elements of a row have lost some of their digits.
    """

    rows: np.ndarray
    columns: np.ndarray
    accurate_rows: np.ndarray
    accurate_columns: np.ndarray
    row_flags: np.ndarray
    column_flags: np.ndarray
    near: np.ndarray


def accurate_parts(sides: Sides) -> tuple[Accurate, Accurate]:
    """What is split in pairs, of rows and of columns."""
    return (
        Accurate(sides.rows, sides.accurate_rows, sides.row_flags),
        Accurate(sides.columns, sides.accurate_columns, sides.column_flags),
    )


def mark_crowds(sides: Sides) -> bool:
    """Mark rows with a crowd of elements near 0, of which one may be misrounded; whether any row is marked."""
    crowded = (sides.near > 1) & (sides.near > CROWD * sides.near.size)
    sides.row_flags[crowded] = ALL
    if crowded.any():
        sides.column_flags[:] = SOME
    return bool(sides.row_flags.any())


@jit.scalar
def side_pair(side, line, index):
    """A pair of a row or a column."""
    return side[line, index], side[line + 1, index]


@jit.scalar
def set_side(side, index, reference, term, share, rest, whole):
    """Write what is kept of a row or a column. Without any other the reference is of no use, but finite."""
    side[REFERENCE, index] = reference if reference > -np.inf else 0.0
    side[TERM, index], side[TERM + 1, index] = term
    side[SHARE, index], side[SHARE + 1, index] = share
    side[REST, index], side[REST + 1, index] = rest
    side[WHOLE, index] = 1.0 if whole else 0.0


@jit.scalar
def likelihood(nll, log_total, distances, count, smoothing):
    """Σ q_j·(lse − x_j) of a smoothed label; distances are Σ (maximum − x_j)."""
    spread = add(multiply(pair(count), log_total), distances)
    return add(multiply(smoothing.keep, nll), multiply(smoothing.uniform, spread))


@jit.helper
def keep_split(split, reference, index, written, distances, count, smoothing):
    """Write a row's split, and add its loss to what its pair has lost so far."""
    side, losses = written.side, written.losses
    if not split.defined:
        none = pair(np.nan)
        set_side(side, index, 0.0, none, none, none, False)
        losses[0, index] = np.nan
        return
    set_side(side, index, reference, split.term, split.share, split.rest, is_whole(split.total))
    loss = likelihood(split.nll, split.log_total, distances, count, smoothing) if smoothing.smooth else split.nll
    losses[0, index], losses[1, index] = add((losses[0, index], losses[1, index]), loss)


@jit.scalar
def coefficient(upstream, index):
    """A cotangent over twice the normaliser, a pair."""
    return divide(pair(upstream.cotangent[index if upstream.cotangent.size > 1 else 0]), upstream.normaliser)


@jit.scalar
def other_slope(term, factor, smoothing):
    """p − q of what is no pair, and the size of its terms; term and factor make p."""
    slope = difference(term, factor, smoothing.uniform)
    return slope, abs(term * factor[0]) + smoothing.uniform[0]


@jit.scalar
def label_slope(side, index, smoothing):
    """p − q of a pair, and the size of its terms: of a sure one what the others have, less what they should."""
    share, rest = side_pair(side, SHARE, index), side_pair(side, REST, index)
    sure = share[0] > 0.5 or not smoothing.smooth
    first = (smoothing.others[0] if sure else share[0]), (smoothing.others[1] if sure else share[1])
    second = (rest[0] if sure else smoothing.label[0]), (rest[1] if sure else smoothing.label[1])
    return add(first, negate(second)), abs(first[0]) + abs(second[0])


@jit.scalar
def joined(row, column, of_row, of_column):
    """The sum of two slopes times their cotangents, a pair, and the size of its terms."""
    value = add(scaled(of_row, row[0]), scaled(of_column, column[0]))
    return value, abs(of_row[0]) * row[1] + abs(of_column[0]) * column[1]


@jit.scalar
def are_whole(i, j, sides):
    """Whether a row and a column hold equal numbers alone."""
    return sides.rows[WHOLE, i] > 0.0 and sides.columns[WHOLE, j] > 0.0


@jit.helper
def settled(value, size, whole):
    """An element from pairs: nothing where that is all that is left, and a short number if it may be one."""
    value = known(value, size) if whole else value
    nothing = abs(value[0]) <= NOTHING * size
    return 0.0 if nothing else value[0], 0.0 if nothing else value[1]


@jit.scalar
def stored(value, wide):
    """A pair to be rounded once; one NaN, whichever an operation makes."""
    result = kept(value, wide)
    return result if result == result else np.nan


@jit.helper
def _new_split(x, label, headroom, lines):
    split, extent = split_softmax(x, label, headroom, lines, x, x)
    return split, extent.reference


@jit.helper
def _distances(x, maximum, products):
    for i in range(x.size):
        products[i] = maximum - x[i]
    return row_sum(products)


@jit.kernel
def split_rows(rows, written, smoothing, headroom, first, last, step):
    """Split rows first ... last at their own labels."""
    count = rows.classes
    tile, terms = np.empty((step, count)), np.empty(count)
    for start in range(first, last, step):
        some = min(step, last - start)
        load_tile(rows, start, some, tile)
        for k in range(some):
            index = start + k
            x = tile[k]
            split, reference = _new_split(x, index, headroom, terms)
            distances = _distances(x, split.maximum, terms) if smoothing.smooth else pair(0.0)
            keep_split(split, reference, index, written, distances, float(count), smoothing)


@jit.scalar
def accurate_side(written, index, logit, others):
    """The split of a row in pairs, from the sum of its others' exponentials."""
    reference, whole = written.side[REFERENCE, index], written.side[WHOLE, index] > 0.0
    larger = max(reference, logit)
    of_others, of_label = accurate_term(reference, larger), accurate_term(logit, larger)
    left = multiply(others, of_others)
    alone = others[0] == 0.0
    total = add(left, of_label)
    # A row that is undefined stays so, whatever its exponentials are relative to.
    undefined = np.nan if written.side[SHARE, index] != written.side[SHARE, index] else 0.0
    total = (1.0 if alone else total[0]) + undefined, (0.0 if alone else total[1])
    of_label = (1.0 if alone else of_label[0]), (0.0 if alone else of_label[1])
    term, share, rest = divide(of_others, total), divide(of_label, total), divide(left, total)
    set_side(written.accurate, index, reference, term, share, rest, whole)


@jit.kernel
def split_accurately(rows, written, first, last):
    """Split those of the rows first ... last in pairs that are wanted."""
    count = rows.classes
    tile, lines = np.empty((1, count)), np.empty((2, count))
    for index in range(first, last):
        if written.flags[index] == 0:
            continue
        load_tile(rows, index, 1, tile)
        x, reference = tile[0], written.side[REFERENCE, index]
        for j in range(count):
            term = accurate_term(x[j], reference) if j != index else pair(0.0)
            lines[0, j], lines[1, j] = term
        others = add(long_sum(lines[0]), long_sum(lines[1]))
        accurate_side(written, index, x[index], others)


@jit.scalar
def element(i, j, term, column_term, sides, upstream, of_row, smoothing):
    """An element from float64 exponentials, and the size of its terms."""
    of_column = coefficient(upstream, j)
    if i == j:
        row, column = label_slope(sides.rows, i, smoothing), label_slope(sides.columns, j, smoothing)
    else:
        row = other_slope(term, side_pair(sides.rows, TERM, i), smoothing)
        column = other_slope(column_term, side_pair(sides.columns, TERM, j), smoothing)
    return joined(row, column, of_row, of_column)


@jit.scalar
def accurate_other(side, index, logit, smoothing):
    """p − q of what is no pair, from a split in pairs."""
    term = accurate_term(logit, side[REFERENCE, index])
    share = multiply(term, side_pair(side, TERM, index))
    return add(share, negate(smoothing.uniform)), share[0] + smoothing.uniform[0]


@jit.helper
def accurate_element(i, j, logit, sides, upstream, smoothing):
    """An element from pairs."""
    if i == j:
        row, column = label_slope(sides.accurate_rows, i, smoothing), label_slope(sides.accurate_columns, j, smoothing)
    else:
        row = accurate_other(sides.accurate_rows, i, logit, smoothing)
        column = accurate_other(sides.accurate_columns, j, logit, smoothing)
    value, size = joined(row, column, coefficient(upstream, i), coefficient(upstream, j))
    return settled(value, size, are_whole(i, j, sides))


@jit.helper
def _exponentials(x, i, sides, terms):
    for j in range(x.size):
        terms[0, j] = exp_difference(x[j], sides.rows[REFERENCE, i])
        terms[1, j] = exp_difference(x[j], sides.columns[REFERENCE, j])


@jit.kernel
def pair_rows(rows, gradient, sides, upstream, smoothing, again, first, last):
    """The gradients of rows first ... last, or again of those with elements that are close; else these are marked."""
    count = rows.classes
    tile, slopes, terms = np.empty((1, count)), np.empty((1, count)), np.empty((2, count))
    wide = gradient.format == 0
    for i in range(first, last):
        if again and sides.row_flags[i] == 0:
            continue
        load_tile(rows, i, 1, tile)
        x, g = tile[0], slopes[0]
        _exponentials(x, i, sides, terms)
        of_row, near, every = coefficient(upstream, i), 0, again and sides.row_flags[i] == ALL
        for j in range(count):
            value, size = element(i, j, terms[0, j], terms[1, j], sides, upstream, of_row, smoothing)
            close = is_close(value[0], size) or are_whole(i, j, sides)
            near += 1 if is_near(value[0], size) else 0
            if again and (close or every):
                value = accurate_element(i, j, x[j], sides, upstream, smoothing)
            elif close:
                sides.row_flags[i] = SOME
                sides.column_flags[j] = SOME
            g[j] = stored(value, wide)
        if not again:
            sides.near[i] = near
        save_tile(slopes, gradient, i, 1)
