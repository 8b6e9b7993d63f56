"""The lattice of a transducer: what a node weighs, and what it needs of its neighbours. CPU and GPU share it.

A sample has T frames and U labels; a node (t, u), t < T and u ≤ U, stands for t frames read and u labels written. Its
row of logits gives p(blank) = b, p(label u + 1) = y and r = 1 − b − y, that of all others. Arc i may be a blank, which
leads to (t + d_i, u) for d_i > 0, or the next label, to (t + d_i, u + 1). Of n arcs of several durations arc i has the
probability q_i, and each is multiplied by s = e^−σ; an RNN-T has one blank of duration 1 and one label of duration 0,
without q and s. A path ends with a blank that arrives at (T, U). Let β be the probability of ending from a node:

    X = Σ q_i·β(t + d_i, u) over d_i > 0,    Y = Σ q_i·β(t + d_i, u + 1),    β = s·(b·X + y·Y)

with β(T, U) = 1 and β = 0 elsewhere outside, and α that of coming to a node. All are sums of positive terms.
P = β(0, 0), and m = α·β/P is how often a path passes a node.

1 − P is such a sum as well. γ = 1 − β satisfies γ = s·(b·X' + y·Y' + r) + (1 − s), where X' and Y' have γ in place of
β, 0 at (T, U) and 1 elsewhere outside, so that a loss next to 0 keeps its digits: −log P = −log1p(−γ(0, 0)).

Gradients. Of −log P, for a logit with p_k of neither blank nor label, m·p_k. At the other two, of the blank b,

    m·b − α·s·b·X/P = (α·s/P)·b·(y·(Y − X) − r·X)
    m·y − α·s·y·Y/P = (α·s/P)·y·(b·(X − Y) − r·Y)

because b + y + r = 1: where the model is sure, m and an arc's share are next to each other, and X and r·X are not. If
the label is the blank, their sum is −(α·s/P)·b·r·(X + Y). Of the logit of duration i, with W_i = b·β(t + d_i, u) +
y·β(t + d_i, u + 1),

    (α·s/P)·q_i·(Σ_j q_j·W_j − W_i) = (α·s/P)·q_i·Σ_j q_j·(W_j − W_i)

of which the right side serves where the left one cancels: for a sure duration, whose q_i is next to 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.numerics import pairs
from refloss.numerics.accurate import exp_accurate, exp_less_one, log1p_accurate
from refloss.numerics.bits import float64_bits, float64_from_bits, fma
from refloss.numerics.exponential import UNDERFLOW, exp_pair, exp_terms, scale
from refloss.numerics.extended import (
    LEAST,
    LOWEST_LOGARITHM,
    ONE,
    ZERO,
    add,
    aligned,
    as_pair,
    exponential,
    from_pair,
    logarithm,
    multiply,
    normalised,
    product,
    ratio,
)
from refloss.numerics.formats import read
from refloss.numerics.pairs import negate, rounded, scaled, two_sum
from refloss.numerics.sums import COARSE_MAGIC, FINE_MAGIC, long_counts

# Numbers that differ by less are the same number: recursions of 2^12 frames lose 2^-88, and what is the same by its
# definition is so before exponentials are rounded.
_DUST = 2.0**-80
# Exponentials of float64 leave errors near 2^-57: of a difference with 2^-20 left, 2^-37, which is 2^-13 of a float32's
# unit in the last place. A sample with less of one is computed again with exponentials in pairs.
_CLOSE = 20
# Below this share a duration's difference is summed from those of all others.
_LEFT = 10
_REACH = 2040
# e to the power of it is below 2^-75, which is no unit of the finer of two grids.
_UNCOUNTED = -52.0


class Numbers(NamedTuple):
    """Numbers with exponents of their own (numerics.extended), one for each node, or several."""

    high: Any  # float64
    low: Any  # float64
    exponent: Any  # int64


class Arcs(NamedTuple):
    """What leads from a node to others: steps in frames, 0 for a blank that there is not."""

    blanks: Any  # [n] int64
    labels: Any  # [n] int64
    weighted: bool  # whether arcs have probabilities, and σ
    sigma: float


class Samples(NamedTuple):
    """A batch; nodes of a sample lie together, those of a frame as well."""

    frames: Any  # [B] int64, T
    counts: Any  # [B] int64, U
    first: Any  # [B] int64, the first node
    labels: Any  # [B, U] int64
    blank: int
    distinct: Any  # [B] bool, whether no label is the blank


class Lattice(NamedTuple):
    """What is known of each node."""

    blank: Numbers  # b
    label: Numbers  # y
    share: Numbers  # p_k over e^(x_k − reference) of the others
    others: Any  # Σ e^(x_k − reference) of the others, a pair
    others_low: Any
    reference: Any  # the largest of their logits
    durations: Numbers  # q_i, node by node
    alpha: Numbers
    beta: Numbers


class Node(NamedTuple):
    """What the gradient of a node's row is made of: numbers, and others as a pair."""

    alpha: Any
    beta: Any
    blank: Any  # b
    label: Any  # y
    share: Any
    of_blanks: Any  # X
    of_labels: Any  # Y
    others: Any


class Slopes(NamedTuple):
    """The gradient of a row: a factor of e^(x_k − reference), and the logits of blank and label; pairs."""

    factor: tuple[float, float]
    blank: tuple[float, float]
    label: tuple[float, float]
    close: bool


@jit.scalar
def load(numbers, index):
    """A number."""
    return numbers.high[index], numbers.low[index], numbers.exponent[index]


@jit.scalar
def keep(numbers, index, value):
    """Write a number."""
    numbers.high[index] = value[0]
    numbers.low[index] = value[1]
    numbers.exponent[index] = value[2]


@jit.scalar
def plain_bits(x, reference):
    """e^(x − reference) with an error of some 2^-58, as bits on two grids; see numerics.sums.

    Powers of two are applied by the multiply-adds that put a term on its grid: their products are exact.
    """
    high, low = two_sum(x, -reference)
    vanishes = high < _UNCOUNTED
    leading, tail, n = exp_terms(_UNCOUNTED if vanishes else high, 0.0 if vanishes else low)
    power = float64_from_bits((n + 1023) << 52)
    coarse = fma(leading + tail, power, COARSE_MAGIC)
    rest = fma(tail, power, fma(leading, power, COARSE_MAGIC - coarse))
    return float64_bits(coarse), float64_bits(rest + FINE_MAGIC)


@jit.scalar
def plain_counts(x, reference):
    """The same as counts."""
    coarse, fine = plain_bits(x, reference)
    return coarse - float64_bits(COARSE_MAGIC), fine - float64_bits(FINE_MAGIC)


@jit.scalar
def accurate_counts(x, reference):
    """The same with an error near 2^-100, on three grids."""
    high, low = two_sum(x, -reference)
    vanishes = high < UNDERFLOW
    term, rest = exp_accurate(UNDERFLOW if vanishes else high, 0.0 if vanishes else low)
    first, second = long_counts(term), long_counts(rest)
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]


@jit.scalar
def _relative(x, maximum, accurate):
    """e^(x − maximum) of two logits that are not +inf."""
    high, low = two_sum(x, -maximum)
    if accurate:
        return exponential(high, low)
    vanishes = high < LOWEST_LOGARITHM
    leading, tail, exponent = exp_pair(0.0 if vanishes else high, 0.0 if vanishes else low)
    top, rest, exponent = normalised((leading, tail), exponent)
    return 0.0 if vanishes else top, 0.0 if vanishes else rest, LEAST if vanishes else exponent


@jit.scalar
def either(condition, a, b):
    """One of two numbers."""
    return a[0] if condition else b[0], a[1] if condition else b[1], a[2] if condition else b[2]


@jit.scalar
def weights(reference, others, blank, label, is_blank, accurate):
    """b, y and the share of others from the logits of blank and label, −inf for none, and the sum of the others."""
    maximum = max(reference, blank, label)
    of_others, of_blank = _relative(reference, maximum, accurate), _relative(blank, maximum, accurate)
    of_label = _relative(label, maximum, accurate)
    total = add(multiply(of_others, from_pair(others)), of_blank)
    inverse = ratio(ONE, either(is_blank, total, add(total, of_label)))
    return multiply(of_blank, inverse), multiply(of_label, inverse), multiply(of_others, inverse)


@jit.helper
def keep_durations(lattice, node, x, start, stride, count, accurate):
    """q of a node from its row of logits; whether they are sound."""
    maximum, sound = -np.inf, True
    for i in range(count):
        value = read(x, start + i * stride)
        sound &= value < np.inf
        maximum = value if value > maximum else maximum
    if not sound or maximum == -np.inf:
        return False
    total = ZERO
    for i in range(count):
        term = _relative(read(x, start + i * stride), maximum, accurate)
        keep(lattice.durations, node * count + i, term)
        total = add(total, term)
    inverse = ratio(ONE, total)
    for i in range(count):
        keep(lattice.durations, node * count + i, multiply(load(lattice.durations, node * count + i), inverse))
    return True


@jit.scalar
def shift_of(arcs):
    """s."""
    return exponential(-arcs.sigma, 0.0) if arcs.weighted else ONE


@jit.helper
def _without_shift(arcs):
    """1 − s of σ ≥ 0."""
    if not arcs.weighted or arcs.sigma == 0.0:
        return ZERO
    if arcs.sigma <= 0.5:
        return from_pair(negate(exp_less_one((-arcs.sigma, 0.0))))
    return from_pair(pairs.add((1.0, 0.0), negate(as_pair(exponential(-arcs.sigma, 0.0)))))


@jit.scalar
def _with_probability(lattice, arcs, node, i, value):
    return multiply(value, load(lattice.durations, node * arcs.blanks.size + i)) if arcs.weighted else value


@jit.scalar
def _duration(lattice, arcs, node, i):
    return load(lattice.durations, node * arcs.blanks.size + i)


@jit.helper
def staying(lattice, arcs, shift, node):
    """What the label's arcs to the next node of the same frame weigh."""
    if not arcs.weighted:
        return load(lattice.label, node)
    total = ZERO
    for i in range(arcs.labels.size):
        if arcs.labels[i] == 0:
            total = add(total, _duration(lattice, arcs, node, i))
    return multiply(multiply(load(lattice.label, node), shift), total)


@jit.helper
def from_before(lattice, arcs, shift, first, width, t, u):
    """The part of α that comes from earlier frames."""
    total = ONE if t == 0 and u == 0 else ZERO
    for i in range(arcs.blanks.size):
        step = arcs.blanks[i]
        if 0 < step <= t:
            total = add(total, _passed(lattice, arcs, shift, lattice.blank, first + (t - step) * width + u, i))
        step = arcs.labels[i]
        if u > 0 and 0 < step <= t:
            total = add(total, _passed(lattice, arcs, shift, lattice.label, first + (t - step) * width + u - 1, i))
    return total


@jit.scalar
def joined(others, weight, beside):
    """α or β of a node, from what comes from other frames and from the node beside it in its own."""
    return add(others, product(weight, beside))


@jit.scalar
def _passed(lattice, arcs, shift, weight, node, i):
    """The probability of coming to a node and leaving it by an arc."""
    value = multiply(load(lattice.alpha, node), load(weight, node))
    if not arcs.weighted:
        return value
    return multiply(multiply(value, shift), _duration(lattice, arcs, node, i))


@jit.helper
def _next(values, step, first, width, frames, t, u, end, outside):
    """β, or γ, where a blank leads to."""
    if step <= 0:
        return outside
    if t + step < frames:
        return load(values, first + (t + step) * width + u)
    return end if t + step == frames and u == width - 1 else outside


@jit.helper
def _after_label(values, step, first, width, frames, t, u, outside):
    """β, or γ, where a label leads to."""
    return load(values, first + (t + step) * width + u + 1) if u < width - 1 and t + step < frames else outside


@jit.helper
def sums_behind(lattice, arcs, values, place, first, width, frames, t, u, end, outside):
    """X and Y of β, or X' and Y' of γ, of which the sample's values begin at a place."""
    node = first + t * width + u
    of_blanks, of_labels = ZERO, ZERO
    for i in range(arcs.blanks.size):
        value = _next(values, arcs.blanks[i], place, width, frames, t, u, end, outside)
        of_blanks = add(of_blanks, _with_probability(lattice, arcs, node, i, value))
        value = _after_label(values, arcs.labels[i], place, width, frames, t, u, outside)
        of_labels = add(of_labels, _with_probability(lattice, arcs, node, i, value))
    return of_blanks, of_labels


@jit.scalar
def _either_arc(lattice, node, of_blanks, of_labels):
    """b·X + y·Y."""
    return add(multiply(load(lattice.blank, node), of_blanks), multiply(load(lattice.label, node), of_labels))


@jit.helper
def from_behind(lattice, arcs, shift, first, width, frames, t, u):
    """The part of β that comes from later frames."""
    node = first + t * width + u
    of_blanks, of_labels = ZERO, ZERO
    for i in range(arcs.blanks.size):
        step = arcs.blanks[i]
        value = _next(lattice.beta, step, first, width, frames, t, u, ONE, ZERO)
        of_blanks = add(of_blanks, _with_probability(lattice, arcs, node, i, value))
        step = arcs.labels[i]
        if step > 0:
            value = _after_label(lattice.beta, step, first, width, frames, t, u, ZERO)
            of_labels = add(of_labels, _with_probability(lattice, arcs, node, i, value))
    total = _either_arc(lattice, node, of_blanks, of_labels)
    return multiply(total, shift) if arcs.weighted else total


@jit.scalar
def _of_others(lattice, node):
    """r."""
    return multiply(load(lattice.share, node), from_pair((lattice.others[node], lattice.others_low[node])))


@jit.helper
def complement(lattice, arcs, shift, missed, place, first, width, frames, t, u):
    """γ of a node, from those of nodes behind it; a sample's begin at a place."""
    node = first + t * width + u
    of_blanks, of_labels = sums_behind(lattice, arcs, missed, place, first, width, frames, t, u, ZERO, ONE)
    total = add(_either_arc(lattice, node, of_blanks, of_labels), _of_others(lattice, node))
    return add(multiply(total, shift), _without_shift(arcs)) if arcs.weighted else total


@jit.scalar
def wants_complement(probability, arcs, distinct):
    """Whether −log P is to come from 1 − P. With σ < 0, or a label that is the blank, that is no sum of positive terms.

    Two arcs with the probability of one class may even make P larger than 1.
    """
    return distinct and probability[2] >= -1 and not (arcs.weighted and arcs.sigma < 0.0)


@jit.helper
def loss_of(probability, missed, arcs, distinct):
    """−log P from P, or from 1 − P."""
    if wants_complement(probability, arcs, distinct):
        rest = negate(as_pair(missed))
        return 0.0 - rounded(log1p_accurate(rest[0], rest[1]))
    return 0.0 - rounded(logarithm(probability))


@jit.scalar
def difference(a, b):
    """|a − b|, whether a is the larger one, and nothing where both are the same but for rounding errors."""
    exponent = max(a[2], b[2])
    first, second = aligned(a, exponent), aligned(b, exponent)
    high, low = pairs.add(first, negate(second))
    positive = high > 0.0
    high, low = high if positive else -high, low if positive else -low
    same = high <= _DUST * max(first[0], second[0])
    value = normalised((0.0 if same else high, 0.0 if same else low), exponent)
    return (value[0], value[1], LEAST if same else value[2]), positive


@jit.scalar
def _is_close(value, beside):
    """Whether too little is left of a difference of numbers of some size."""
    return value[0] > 0.0 and value[2] < beside[2] - _CLOSE


@jit.scalar
def _larger(a, b):
    above = a[2] > b[2] or (a[2] == b[2] and a[0] > b[0])
    return a[0] if above else b[0], a[1] if above else b[1], a[2] if above else b[2]


@jit.scalar
def _slope(factor, value, negative, coefficient):
    """±coefficient·factor·value of numbers and a pair, as a pair."""
    high, low, exponent = multiply(factor, value)
    product = scaled(coefficient, (high, low))
    exponent = min(max(exponent, -_REACH), _REACH)
    high, low = scale(product[0], exponent), scale(product[1], exponent)
    return -high if negative else high, -low if negative else low


@jit.scalar
def _pulled(other_weight, gap, is_pushed, others, own):
    """other_weight·(other − own) − others·own: its magnitude, and whether it is negative.

    gap is |other − own|, is_pushed whether other is the larger one.
    """
    towards, away = multiply(other_weight, gap), multiply(others, own)
    value, positive = difference(towards, away)
    value = either(is_pushed, value, add(towards, away))
    return value, not (is_pushed and positive)


@jit.scalar
def slopes_of(node, probability, shift, coefficient, is_blank):
    """The gradient of a node's row; coefficient is the sample's, a pair."""
    passing = ratio(node.alpha, probability)
    factor = multiply(multiply(passing, node.beta), node.share)
    passing = multiply(passing, shift)
    r = multiply(node.share, from_pair(node.others))
    gap, is_label = difference(node.of_labels, node.of_blanks)
    size = _larger(node.of_labels, node.of_blanks)
    blank, blank_negative = _pulled(node.label, gap, is_label, r, node.of_blanks)
    label, label_negative = _pulled(node.blank, gap, not is_label, r, node.of_labels)
    close = _is_close(blank, add(multiply(node.label, size), multiply(r, node.of_blanks)))
    close |= _is_close(label, add(multiply(node.blank, size), multiply(r, node.of_labels)))
    blank = either(is_blank, multiply(r, add(node.of_blanks, node.of_labels)), blank)
    label = either(is_blank, blank, label)
    return Slopes(
        _slope(factor, ONE, False, coefficient),
        _slope(multiply(passing, node.blank), blank, blank_negative or is_blank, coefficient),
        _slope(multiply(passing, node.label), label, label_negative or is_blank, coefficient),
        close and not is_blank,
    )


@jit.helper
def keep_worths(worths, place, lattice, arcs, first, width, frames, t, u):
    """W of each duration, from a place on; Σ q_i·W_i."""
    node = first + t * width + u
    total = ZERO
    for i in range(arcs.blanks.size):
        after_blank = _next(lattice.beta, arcs.blanks[i], first, width, frames, t, u, ONE, ZERO)
        after_label = _after_label(lattice.beta, arcs.labels[i], first, width, frames, t, u, ZERO)
        worth = _either_arc(lattice, node, after_blank, after_label)
        keep(worths, place + i, worth)
        total = add(total, multiply(load(lattice.durations, node * arcs.blanks.size + i), worth))
    return total


@jit.helper
def _from_others(worths, place, lattice, node, count, i):
    """Σ_j q_j·(W_j − W_i): its magnitude, whether it is positive, and what it is close to 0 beside."""
    own, above, below, size = load(worths, place + i), ZERO, ZERO, ZERO
    for j in range(count):
        other, q = load(worths, place + j), load(lattice.durations, node * count + j)
        if j == i:
            continue
        gap, is_above = difference(other, own)
        part = multiply(q, gap)
        size = add(size, multiply(q, _larger(other, own)))
        if is_above:
            above = add(above, part)
        else:
            below = add(below, part)
    value, positive = difference(above, below)
    return value, positive, size


@jit.helper
def duration_slope(worths, place, mean, lattice, arcs, probability, shift, coefficient, node, i):
    """The gradient of the logit of a duration, and whether it is close to 0."""
    size = _larger(mean, load(worths, place + i))
    value, positive = difference(mean, load(worths, place + i))
    if value[2] < size[2] - _LEFT:
        value, positive, size = _from_others(worths, place, lattice, node, arcs.blanks.size, i)
    passing = multiply(
        multiply(ratio(load(lattice.alpha, node), probability), shift),
        load(lattice.durations, node * arcs.blanks.size + i),
    )
    return _slope(passing, value, not positive, coefficient), _is_close(value, size)
