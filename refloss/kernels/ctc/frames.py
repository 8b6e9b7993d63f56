"""One frame's logits: what it emits, and its gradient, the same for every backend.

With e_k = e^(x_k − m), m the largest logit, and S their sum, p_k = e_k/S. Labels of the sequence have pairs; what the
other classes have together is a sum of float64 exponentials, good to 2^-54, since no alignment has a part in it: −log p
of all alignments is no less than it. Where a difference p − γ leaves too little beside the error of that sum, it is
taken again in pairs.

Log-probabilities are taken as they are: m = 0 and S = 1.

A label that is sure, p and γ next to 1, gets Σ (γ_j − p_j) over all other classes, or e^x − 1 + Σ γ_j, which cancel
nothing that the sum itself does not cancel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import row_offset
from refloss.numerics import pairs
from refloss.numerics.accurate import exp_less_one
from refloss.numerics.bits import float64_bits, fma
from refloss.numerics.exponential import exp, exp_difference
from refloss.numerics.extended import as_pair, plus, probability
from refloss.numerics.formats import store, vector_of, widen
from refloss.numerics.pairs import scaled, to_odd
from refloss.numerics.settled import PRECISIONS

# Sums over classes are as many sums, of every so many-th class, whatever computes them.
LANES = 32
# Of a difference that is less than this share of the other classes' part in it, too little is known.
CLOSE = 2.0**-12
# p and γ beyond it are those of a sure label.
SURE = 1.0 - 2.0**-8
# Of formats by their number: the bits of float64 that they lack, and their least normal number.
_DROPPED = tuple(precision.dropped for precision in PRECISIONS.values())
_LEAST = tuple(2.0**precision.smallest for precision in PRECISIONS.values())
# Products below it are numbers of float64.
_LARGEST = 2.0**1000
# What a frame adds, at most, to the relative error of a share: two exponentials, products and sums in pairs.
_NOISE = 2.0**-98


class Chosen(NamedTuple):
    """What a frame has for each of a sequence's labels, arrays of as many."""

    logits: np.ndarray
    high: np.ndarray  # p − γ, pairs
    low: np.ndarray
    gamma: np.ndarray
    gamma_low: np.ndarray
    p: np.ndarray


@jit.helper
def _at(memory, offset, stride, labels, count, values):
    for d in range(count):
        values[d] = widen(memory[offset + labels[d] * stride])


@jit.helper
def at_labels(rows, frame, labels, count, values):
    """The elements of a row of any format at some classes, as float64."""
    offset, stride = row_offset(rows, frame), rows.class_stride
    if rows.format == 0:
        _at(vector_of(rows.memory, np.float64), offset, stride, labels, count, values)
    elif rows.format == 1:
        _at(vector_of(rows.memory, np.float32), offset, stride, labels, count, values)
    elif rows.format == 2:
        _at(vector_of(rows.memory, np.int16), offset, stride, labels, count, values)
    else:
        _at(vector_of(rows.memory, np.uint16), offset, stride, labels, count, values)


@jit.helper
def _put(values, memory, offset, stride, labels, count):
    for d in range(count):
        store(memory, offset + labels[d] * stride, values[d])


@jit.helper
def put_at_labels(values, rows, frame, labels, count):
    """Values, rounded, to elements of a row of any format."""
    offset, stride = row_offset(rows, frame), rows.class_stride
    if rows.format == 0:
        _put(values, vector_of(rows.memory, np.float64), offset, stride, labels, count)
    elif rows.format == 1:
        _put(values, vector_of(rows.memory, np.float32), offset, stride, labels, count)
    elif rows.format == 2:
        _put(values, vector_of(rows.memory, np.int16), offset, stride, labels, count)
    else:
        _put(values, vector_of(rows.memory, np.uint16), offset, stride, labels, count)


@jit.helper
def largest(row, lanes):
    """The largest element; NaN if one is NaN."""
    top, undefined = lanes[0], 0
    for lane in range(LANES):
        top[lane] = -np.inf
    for start in range(0, row.size, LANES):
        # A part whose index begins at 0 is loaded as it lies; one that might be negative, element by element.
        part = row[start : start + LANES]
        for lane in range(LANES):
            top[lane] = part[lane] if part[lane] > top[lane] else top[lane]
    for i in range(row.size):
        undefined |= 1 if row[i] != row[i] else 0
    result = top[0]
    for lane in range(1, LANES):
        result = max(result, top[lane])
    return np.nan if undefined else result


@jit.helper
def exponentials(row, maximum):
    """e^(x − m) in place of x, in float64."""
    for i in range(row.size):
        row[i] = exp_difference(row[i], maximum)


@jit.scalar
def plain_exponential(x):
    """e^x; NaN is handed on."""
    return exp(x) if x == x else x


@jit.helper
def plain_exponentials(row):
    """e^x in place of x."""
    for i in range(row.size):
        row[i] = plain_exponential(row[i])


@jit.helper
def _multiply(row, factor, is_narrow, products):
    for i in range(row.size):
        value = scaled((row[i], 0.0), factor)
        products[i] = to_odd(value) if is_narrow else value[0]


@jit.helper
def _multiply_quickly(row, factor, dropped, least, products):
    """The same, not rounded to odd; whether a product is next to a tie of its format, tiny or infinite."""
    tie, tail, is_open = 1 << (dropped - 1), (1 << dropped) - 1, 0
    for i in range(row.size):
        product = fma(row[i], factor[0], row[i] * factor[1])
        near = (float64_bits(product) - tie + 1) & tail <= 2
        usual = least <= abs(product) < _LARGEST
        is_open |= 1 if near or not usual else 0
        products[i] = product
    return is_open


@jit.helper
def multiply(row, factor, number, products):
    """A row times a pair; rounded to odd, if its format, of that number, has fewer bits than float64.

    What is rounded to odd is at most the neighbour of the product that float64 has. Where none of these is next to a
    tie, both are rounded to the same number.
    """
    is_narrow = number != 0
    if not is_narrow or _multiply_quickly(row, factor, _DROPPED[number], _LEAST[number], products):
        _multiply(row, factor, is_narrow, products)


@jit.scalar
def _halved(high, low, half):
    for lane in range(half):
        a, b = (high[lane], low[lane]), (high[lane + half], low[lane + half])
        high[lane], low[lane] = pairs.fast_two_sum(*plus(a, b))


@jit.helper
def folded(lanes):
    """The sum of what lanes have, which it spoils."""
    high, low = lanes[0], lanes[1]
    _halved(high, low, 16)
    _halved(high, low, 8)
    _halved(high, low, 4)
    _halved(high, low, 2)
    _halved(high, low, 1)
    return high[0], low[0]


@jit.scalar
def _cleared(lanes):
    for lane in range(LANES):
        lanes[0, lane] = lanes[1, lane] = 0.0
    return lanes[0], lanes[1]


@jit.helper
def total_of_exponentials(row, maximum, lanes):
    """Σ e^(x − m), of logits, whose terms have the accuracy of float64: a pair."""
    high, low = _cleared(lanes)
    for start in range(0, row.size, LANES):
        part = row[start : start + LANES]
        for lane in range(LANES):
            high[lane], low[lane] = plus((high[lane], low[lane]), (exp_difference(part[lane], maximum), 0.0))
    return folded(lanes)


@jit.scalar
def with_pair(total, value):
    """The sum of two pairs that are not negative."""
    return pairs.fast_two_sum(*plus(total, value))


@jit.helper
def total_of_pairs(row, low_row, lanes):
    """The same of pairs."""
    high, low = _cleared(lanes)
    whole = row.size // LANES * LANES
    for start in range(0, whole, LANES):
        part, low_part = row[start : start + LANES], low_row[start : start + LANES]
        for lane in range(LANES):
            high[lane], low[lane] = with_pair((high[lane], low[lane]), (part[lane], low_part[lane]))
    part, low_part = row[whole:], low_row[whole:]
    for lane in range(part.size):
        high[lane], low[lane] = with_pair((high[lane], low[lane]), (part[lane], low_part[lane]))
    return folded(lanes)


@jit.scalar
def with_term(total, x, maximum):
    """A sum and e^(x − m), pairs."""
    return with_pair(total, as_pair(probability(x, (maximum, 0.0))))


@jit.helper
def accurate_total(row, maximum, lanes):
    """Σ e^(x − m) in pairs, of logits."""
    high, low = _cleared(lanes)
    for start in range(0, row.size, LANES):
        part = row[start : start + LANES]
        for lane in range(LANES):
            high[lane], low[lane] = with_term((high[lane], low[lane]), part[lane], maximum)
    return folded(lanes)


@jit.helper
def of_labels(emitted, frame, chosen, lanes):
    """What a frame emits for all labels of a sequence together, a pair; it spoils the chosen differences."""
    for d in range(chosen.high.size):
        number = emitted.high[frame, d], emitted.low[frame, d], emitted.exponent[frame, d]
        chosen.high[d], chosen.low[d] = as_pair(number)
    return total_of_pairs(chosen.high, chosen.low, lanes)


@jit.scalar
def noise_of(frames):
    """The relative error of a share after so many frames: what it leaves of a difference that is 0."""
    return _NOISE * (frames + 8)


@jit.scalar
def _without_noise(value, noise):
    """A pair without what may be an error."""
    return 0.0 if abs(value[0]) <= noise else value[0], 0.0 if abs(value[1]) <= noise else value[1]


@jit.scalar
def difference(emitted, inverse, gamma, noise):
    """p − γ of a label, and p; inverse is 1/S."""
    p = pairs.multiply(as_pair(emitted), inverse)
    return _without_noise(pairs.add(p, pairs.negate(gamma)), noise * max(p[0], gamma[0])), p[0]


@jit.scalar
def is_sure(p, gamma):
    """Whether a label is."""
    return p > SURE and gamma > SURE


@jit.scalar
def is_close(value, p, others):
    """Whether too little of a difference is known; others is the part of the classes that are no labels."""
    return abs(value) < CLOSE * others * p


@jit.helper
def sure_difference(chosen, count, sure, others, is_softmax, noise):
    """The same for a label that is sure; what the others have is there."""
    total = pairs.negate(others) if is_softmax else exp_less_one((chosen.logits[sure], 0.0))
    size = abs(total[0])
    for d in range(count):
        if d != sure:
            pushed = (-chosen.high[d], -chosen.low[d]) if is_softmax else (chosen.gamma[d], chosen.gamma_low[d])
            total = pairs.add(total, pushed)
            size += abs(pushed[0])
    return _without_noise(total, noise * size)
