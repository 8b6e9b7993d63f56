"""Rows of a router's logits in pairs: see losses/moe_load_balancing.py and losses/router_z_loss.py.

Of a row, kernels.logits.row knows the largest logit, the exponentials t_e relative to it and their sum Z; p_e = t_e/Z.
Probabilities are added up exactly, over all rows, and so is the square of lse. With c_e how often expert e is chosen,
the gradient of Σ_e c_e·p_e is

    p_e·Σ_j (c_e − c_j)·p_j = t_e·D_e/Z²,    D_e = Σ_j (c_e − c_j)·t_j

whose terms have both signs. With d_e = c_e − c_top it is d_e·Z − Σ_j d_j·t_j, two sums a row, of which nothing is lost
where the row is sure of an expert. Where too little is left, D_e is added up by itself: counts are whole numbers, those
of experts with equal logits cancel exactly before they are multiplied, and what they leave has a size of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.logits.row import DUST, NOTHING, Pair, lse_of, softmax_of
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.kernels.vectors.loop import total_of
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded, scaled, to_odd
from refloss.numerics.sums import limb_parts, mantissa_of

# What is done with a row: its lse² and the gradient of that, experts chosen and probabilities added up, or the gradient
# of the balance.
SQUARES, CHOICES, SLOPES = 0, 1, 2
# Of two sums that differ by less than this share of them, pairs leave fewer than 58 bits of the difference.
DEEP = 2.0**-40
# Lines of the scratch: logits, exponentials, and two of pairs that what is written is made of.
LINES = 8


class Given(NamedTuple):
    """What rows are given beside their logits."""

    counts: np.ndarray  # [R] bool
    chosen: np.ndarray  # [R, k] int64, experts of each row; −1 where a row does not count
    is_chosen: bool  # whether chosen is given, else it is written
    tokens: np.ndarray  # [E] float64, c
    factor: Pair  # of the gradient


class Results(NamedTuple):
    """What is written of every row that counts."""

    lse: np.ndarray  # [R]
    squares: np.ndarray  # [2, R], lse² as pairs


class Sums(NamedTuple):
    """What is added up over rows that count."""

    limbs: np.ndarray  # [E, LIMBS] int64, probabilities
    undefined: np.ndarray  # [1] int64, rows that have none


class Lines(NamedTuple):
    """Of one row, [E] each; pairs are two lines."""

    z: np.ndarray
    z_low: np.ndarray
    term: np.ndarray
    term_low: np.ndarray
    part: np.ndarray
    part_low: np.ndarray
    other: np.ndarray
    other_low: np.ndarray


@jit.scalar
def lines_of(scratch):
    """The lines of a scratch."""
    return Lines(scratch[0], scratch[1], scratch[2], scratch[3], scratch[4], scratch[5], scratch[6], scratch[7])


@jit.helper
def _softmax_of_row(lines):
    """What is to be known of the row whose logits are in the first line."""
    for e in range(lines.z.size):
        lines.z_low[e] = 0.0
    return softmax_of(lines.z, lines.z_low, lines.term, lines.term_low)


@jit.scalar
def share_of(lines, softmax, e):
    """p_e, a pair."""
    return divide((lines.term[e], lines.term_low[e]), softmax.total)


@jit.helper
def _choose(z, defined, chosen):
    """The experts of the largest logits, of equal ones the first; of a row without probabilities the first ones."""
    for k in range(chosen.size):
        best = k if not defined else -1
        for e in range(z.size if defined else 0):
            left = k == 0 or z[e] < z[chosen[k - 1]] or (z[e] == z[chosen[k - 1]] and e > chosen[k - 1])
            if left and (best < 0 or z[e] > z[best]):
                best = e
        chosen[k] = best


@jit.scalar
def _ready(value, factor):
    """A pair times the factor, for its one rounding: 0 has no sign, and rounding errors make no tie another number."""
    high, low = scaled(value, factor)
    return high + 0.0, low if abs(low) >= DUST * abs(high) else 0.0


@jit.helper
def _write_square_slopes(lines, softmax, factor):
    lse = lse_of(softmax)
    for e in range(lines.part.size):
        value = divide(multiply((lines.term[e], lines.term_low[e]), lse), softmax.total)
        lines.part[e], lines.part_low[e] = _ready(value, factor)


@jit.helper
def _first_alike(z, e):
    """The first expert with the same logit."""
    for j in range(e):
        if z[j] == z[e]:
            return j
    return e


@jit.helper
def _deep_difference(lines, tokens, e):
    """D_e, whose terms cancel: experts with equal logits are one term."""
    largest = 0.0
    for j in range(tokens.size):
        lines.other[j] = 0.0
    for j in range(tokens.size):
        lines.other[_first_alike(lines.z, j)] += tokens[e] - tokens[j]
    for j in range(tokens.size):
        value = multiply(pair(lines.other[j]), (lines.term[j], lines.term_low[j]))
        lines.other[j], lines.other_low[j] = value
        largest = max(largest, abs(value[0]))
    left = total_of(lines.other, lines.other_low)
    nothing = abs(left[0]) <= NOTHING * largest
    return 0.0 if nothing else left[0], 0.0 if nothing else left[1]


@jit.helper
def _write_slopes(lines, softmax, tokens, factor):
    base, size = tokens[softmax.top], 0.0
    for e in range(tokens.size):
        value = multiply(pair(tokens[e] - base), (lines.term[e], lines.term_low[e]))
        lines.part[e], lines.part_low[e] = value
        size += abs(value[0])
    pulled, square = total_of(lines.part, lines.part_low), multiply(softmax.total, softmax.total)
    for e in range(tokens.size):
        pushed = multiply(pair(tokens[e] - base), softmax.total)
        difference = add(pushed, negate(pulled))
        if abs(difference[0]) < DEEP * (abs(pushed[0]) + size):
            difference = _deep_difference(lines, tokens, e)
        value = divide(multiply((lines.term[e], lines.term_low[e]), difference), square)
        lines.part[e], lines.part_low[e] = _ready(value, factor)


@jit.helper
def _write_square(softmax, row, results):
    """lse and lse² of a row that counts."""
    lse = lse_of(softmax)
    square = multiply(lse, lse)
    results.lse[row] = rounded(lse)
    results.squares[0, row], results.squares[1, row] = square


@jit.helper
def clear(lines, value):
    """A gradient that is a number everywhere: 0 of a row that does not count, NaN of one without probabilities."""
    for e in range(lines.part.size):
        lines.part[e], lines.part_low[e] = value, 0.0


@jit.helper
def work_on(lines, row, given, results, step, with_gradient):
    """A step of the row that counts and whose logits are in the first line, its gradient too; what is known of it."""
    softmax = _softmax_of_row(lines)
    if step == SQUARES:
        _write_square(softmax, row, results)
    elif step == CHOICES and not given.is_chosen:
        _choose(lines.z, softmax.defined, given.chosen[row])
    if with_gradient and not softmax.defined:
        clear(lines, np.nan)
    elif with_gradient and step == SQUARES:
        _write_square_slopes(lines, softmax, given.factor)
    elif with_gradient:
        _write_slopes(lines, softmax, given.tokens, given.factor)
    return softmax


@jit.helper
def _deposit(value, limbs):
    magnitude, negative, offset = mantissa_of(value)
    limb, low, middle, high = limb_parts(magnitude, negative, offset)
    limbs[limb] += low
    limbs[limb + 1] += middle
    limbs[limb + 2] += high


@jit.helper
def _add_shares(lines, softmax, sums):
    if not softmax.defined:
        sums.undefined[0] += 1
        return
    for e in range(lines.z.size):
        share = share_of(lines, softmax, e)
        _deposit(share[0], sums.limbs[e])
        _deposit(share[1], sums.limbs[e])


@jit.kernel
def router_rows(rows, gradient, given, results, sums, step, with_gradient, first, last):
    """A step of rows first ... last."""
    scratch = np.empty((LINES, rows.classes))
    lines = lines_of(scratch)
    for row in range(first, last):
        if given.counts[row]:
            load_strided(rows, row_offset(rows, row), rows.class_stride, lines.z)
            softmax = work_on(lines, row, given, results, step, with_gradient)
            if step == CHOICES:
                _add_shares(lines, softmax, sums)
        else:
            clear(lines, 0.0)
        if not with_gradient:
            continue
        for e in range(lines.part.size if gradient.format != 0 else 0):
            lines.part[e] = to_odd((lines.part[e], lines.part_low[e]))
        save_strided(lines.part, gradient, row_offset(gradient, row), gradient.class_stride)
