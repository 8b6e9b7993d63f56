"""The states that an alignment goes through, the same for every backend.

A sequence of U labels has S = 2U + 1 states: blank, y_1, blank, ..., y_U, blank. A frame emits the label of a state,
and the next frame is in the same state, the next one, or the one after that, if that is a label which differs from the
last label (two of one label are told apart by a blank). Alignments begin in one of the first two states and end in one
of the last two.

    α_t(s) = p_t(s)·(α_{t−1}(s) + α_{t−1}(s − 1) + [skip s]·α_{t−1}(s − 2))      of all that begins, frame t included
    β_t(s) = ω_{t+1}(s) + ω_{t+1}(s + 1) + [skip s + 2]·ω_{t+1}(s + 2),    ω_t = p_t·β_t      of all that follows

p is a probability, or one times a number that a frame has for all of its classes. A state's share of the probability of
all alignments is α·β/Σ, whatever those numbers are.

Blanks and labels have a row each, since a blank is reached from two states only, and emits the same wherever it is:
pair i is state 2i, a blank, and state 2i + 1, label y_i. Rows are numbers.extended in whole groups, with a group of
zeros on either side. What is beyond the last label emits nothing. A pair before first_pair cannot be finished any more,
and none from last_pair on has been reached.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.numerics import pairs
from refloss.numerics.extended import LEAST, aligned, as_pair, normalised, plus, product

# Loops are over whole groups, as many as a processor's widest registers hold: what is left over would take longer.
GROUP = 8
# Zeros on either side of a row of states.
MARGIN = GROUP


class Numbers(NamedTuple):
    """An array of numbers with exponents of their own."""

    high: np.ndarray
    low: np.ndarray
    exponent: np.ndarray


class Paths(NamedTuple):
    """What each of N sequences goes through, in arrays that are as long as the longest needs."""

    frames: np.ndarray  # [N]
    counts: np.ndarray  # [N], how many labels there are
    distinct: np.ndarray  # [N], how many of them are different, blank among them
    labels: np.ndarray  # [N, D], these, blank first
    slots: np.ndarray  # [N, P], which of them a pair has; behind the last one, one that is none
    skips: np.ndarray  # [N, P + 1], whether the label before may come directly before
    starts: np.ndarray  # [N, D + 1], where a label's pairs begin in order
    order: np.ndarray  # [N, U], pairs by their label


def whole_groups(size: int) -> int:
    """A size in whole groups."""
    return -(-size // GROUP) * GROUP


def zeros(*shape: int) -> Numbers:
    """An array of zeros."""
    return Numbers(np.zeros(shape), np.zeros(shape), np.full(shape, LEAST, np.int64))


def empty(*shape: int) -> Numbers:
    """An array that is written before it is read."""
    return Numbers(np.empty(shape), np.empty(shape), np.empty(shape, np.int64))


@jit.helper
def _find_slots(targets, blank, seen, labels, slots):
    """The different labels of a sequence, and which of them each pair has; seen [C] is −1, and is so afterwards."""
    labels[0], seen[blank], count = blank, 0, 1
    for i in range(targets.size):
        label = targets[i]
        if seen[label] < 0:
            seen[label] = count
            labels[count] = label
            count += 1
        slots[i] = seen[label]
    for i in range(targets.size, slots.size):
        slots[i] = count
    for d in range(count):
        seen[labels[d]] = -1
    return count


@jit.helper
def _find_skips(targets, skips):
    """A label may follow another one directly. The first may follow nothing, and what is behind the last state, it."""
    for i in range(skips.size):
        skips[i] = i == 0 or i >= targets.size or targets[i] != targets[i - 1]


@jit.helper
def _sort_by_label(size, count, slots, starts, order):
    for d in range(count + 1):
        starts[d] = 0
    for i in range(size):
        starts[slots[i] + 1] += 1
    for d in range(count):
        starts[d + 1] += starts[d]
    for i in range(size):
        order[starts[slots[i]]] = i
        starts[slots[i]] += 1
    for d in range(count, 0, -1):
        starts[d] = starts[d - 1]
    starts[0] = 0


@jit.kernel
def find_paths(targets, offsets, blank, seen, paths):
    """What sequences of labels, one after the other, go through."""
    for n in range(paths.counts.size):
        own = targets[offsets[n] : offsets[n + 1]]
        count = _find_slots(own, blank, seen, paths.labels[n], paths.slots[n])
        _find_skips(own, paths.skips[n])
        _sort_by_label(own.size, count, paths.slots[n], paths.starts[n], paths.order[n])
        paths.counts[n], paths.distinct[n] = own.size, count


@jit.scalar
def first_pair(labels, frames, t):
    """The first pair of frame t from which the rest can be finished, in whole groups."""
    return max(0, labels - (frames - t)) // GROUP * GROUP


@jit.scalar
def last_pair(t):
    """The pair behind the last one that frame t can be in, in whole groups."""
    return (t + GROUP) // GROUP * GROUP


@jit.scalar
def number(row, i):
    """One of a row's numbers."""
    return row.high[i], row.low[i], row.exponent[i]


@jit.scalar
def set_number(row, i, value):
    """Write it."""
    row.high[i], row.low[i], row.exponent[i] = value


@jit.scalar
def met(here, near):
    """The sum of two numbers: a pair, not normalised, and an exponent."""
    exponent = max(here[2], near[2])
    return plus(aligned(here, exponent), aligned(near, exponent)), exponent


@jit.scalar
def arrived(here, near, far, skip):
    """The same of two numbers and, if it may be skipped to, a third."""
    skipped = skip != 0
    beyond = far[0] if skipped else 0.0, far[1] if skipped else 0.0, far[2] if skipped else LEAST
    exponent = max(here[2], near[2], beyond[2])
    return plus(plus(aligned(here, exponent), aligned(near, exponent)), aligned(beyond, exponent)), exponent


@jit.scalar
def stepped(total, emitted):
    """α of a state from the sum over those of the frame before, and what the frame emits."""
    value, exponent = total
    return normalised(pairs.product(value, (emitted[0], emitted[1])), exponent + emitted[2])


@jit.scalar
def followed(total):
    """β of a state from the sum over ω of the frame behind it."""
    value, exponent = total
    return normalised(value, exponent)


@jit.scalar
def share(alpha, beta, exponent):
    """α·β of a state times 2^exponent, as a pair."""
    high, low, own = product(alpha, beta)
    return as_pair((high, low, own + exponent))
