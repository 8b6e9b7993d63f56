"""The states that an alignment goes through, the same for every backend.

A sequence of U labels has S = 2U + 1 states: blank, y_1, blank, ..., y_U, blank. A frame emits the label of a state,
and the next frame is in the same state, the next one, or the one after that, if that is a label which differs from the
last label (two of one label are told apart by a blank). Alignments begin in one of the first two states and end in one
of the last two.

    α_t(s) = p_t(s)·(α_{t−1}(s) + α_{t−1}(s − 1) + [skip s]·α_{t−1}(s − 2))      of all that begins, frame t included
    β_t(s) = ω_{t+1}(s) + ω_{t+1}(s + 1) + [skip s + 2]·ω_{t+1}(s + 2),    ω_t = p_t·β_t      of all that follows

p is a probability, or one times a number that a frame has for all of its classes. A state's share of the probability of
all alignments is α·β/Σ, whatever those numbers are.

Rows of states are numbers.extended, with two zeros before and two behind them. A state before first_state cannot
be finished any more, and none from last_state on has been reached.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.numerics import pairs
from refloss.numerics.extended import LEAST, aligned, as_pair, normalised, plus, product

# Zeros on either side of a row of states.
MARGIN = 2


class Numbers(NamedTuple):
    """An array of numbers with exponents of their own."""

    high: np.ndarray
    low: np.ndarray
    exponent: np.ndarray


class Paths(NamedTuple):
    """What each of N sequences goes through, in arrays that are as long as the longest needs."""

    frames: np.ndarray  # [N]
    states: np.ndarray  # [N]
    distinct: np.ndarray  # [N], how many labels are different, blank among them
    labels: np.ndarray  # [N, D], these, blank first
    slots: np.ndarray  # [N, S], which of them a state has
    skips: np.ndarray  # [N, S + 2], whether the state two before may come directly before
    starts: np.ndarray  # [N, D + 1], where a label's states begin in order
    order: np.ndarray  # [N, S], states by their label


def zeros(*shape: int) -> Numbers:
    """An array of zeros."""
    return Numbers(np.zeros(shape), np.zeros(shape), np.full(shape, LEAST, np.int64))


@jit.helper
def _find_slots(targets, blank, seen, labels, slots):
    """The different labels of a sequence, and which of them each state has; seen [C] is −1, and is so afterwards."""
    labels[0], seen[blank], count = blank, 0, 1
    for s in range(2 * targets.size + 1):
        label = targets[s // 2] if s % 2 else blank
        if seen[label] < 0:
            seen[label] = count
            labels[count] = label
            count += 1
        slots[s] = seen[label]
    for d in range(count):
        seen[labels[d]] = -1
    return count


@jit.helper
def _find_skips(targets, skips):
    """A label may follow another one directly. The first may follow nothing, and what is behind the last state, it."""
    for s in range(2 * targets.size + 3):
        label = s // 2
        skips[s] = s % 2 == 1 and (s == 1 or s > 2 * targets.size or targets[label] != targets[label - 1])


@jit.helper
def _sort_by_label(states, count, slots, starts, order):
    for d in range(count + 1):
        starts[d] = 0
    for s in range(states):
        starts[slots[s] + 1] += 1
    for d in range(count):
        starts[d + 1] += starts[d]
    for s in range(states):
        order[starts[slots[s]]] = s
        starts[slots[s]] += 1
    for d in range(count, 0, -1):
        starts[d] = starts[d - 1]
    starts[0] = 0


@jit.kernel
def find_paths(targets, offsets, blank, seen, paths):
    """What sequences of labels, one after the other, go through."""
    for n in range(paths.states.size):
        own = targets[offsets[n] : offsets[n + 1]]
        paths.states[n] = 2 * own.size + 1
        count = _find_slots(own, blank, seen, paths.labels[n], paths.slots[n])
        _find_skips(own, paths.skips[n])
        _sort_by_label(paths.states[n], count, paths.slots[n], paths.starts[n], paths.order[n])
        paths.distinct[n] = count


@jit.scalar
def first_state(states, frames, t):
    """The first state of frame t from which the rest can be finished."""
    return max(0, states - 2 * (frames - t))


@jit.scalar
def last_state(states, t):
    """The state behind the last one that frame t can be in."""
    return min(states, 2 * (t + 1))


@jit.scalar
def number(row, i):
    """One of a row's numbers."""
    return row.high[i], row.low[i], row.exponent[i]


@jit.scalar
def set_number(row, i, value):
    """Write it."""
    row.high[i], row.low[i], row.exponent[i] = value


@jit.scalar
def arrived(here, near, far, skip):
    """The sum of two numbers and, if it may be skipped to, a third: a pair, not normalised, and an exponent."""
    skipped = skip != 0
    beyond = far[0] if skipped else 0.0, far[1] if skipped else 0.0, far[2] if skipped else LEAST
    exponent = max(here[2], near[2], beyond[2])
    return plus(plus(aligned(here, exponent), aligned(near, exponent)), aligned(beyond, exponent)), exponent


@jit.scalar
def stepped(here, near, far, skip, emitted):
    """α of a state from those of the frame before, and what the frame emits."""
    total, exponent = arrived(here, near, far, skip)
    return normalised(pairs.product(total, (emitted[0], emitted[1])), exponent + emitted[2])


@jit.scalar
def followed(here, near, far, skip):
    """β of a state from ω of the frame behind it."""
    total, exponent = arrived(here, near, far, skip)
    return normalised(total, exponent)


@jit.scalar
def share(alpha, beta):
    """α·β of a state as a pair: its share of all alignments, where β begins with 1/Σ."""
    return as_pair(product(alpha, beta))


@jit.scalar
def of_label(high, low, order, start, end):
    """The sum of pairs high[s] + low[s] over some states of an order, in four sums: a processor adds them at a time."""
    a, b, c, d = (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
    k = start
    while k + 4 <= end:
        i, j, m, n = order[k], order[k + 1], order[k + 2], order[k + 3]
        a = pairs.fast_two_sum(*plus(a, (high[i], low[i])))
        b = pairs.fast_two_sum(*plus(b, (high[j], low[j])))
        c = pairs.fast_two_sum(*plus(c, (high[m], low[m])))
        d = pairs.fast_two_sum(*plus(d, (high[n], low[n])))
        k += 4
    while k < end:
        i = order[k]
        a = pairs.fast_two_sum(*plus(a, (high[i], low[i])))
        k += 1
    left, right = pairs.fast_two_sum(*plus(a, b)), pairs.fast_two_sum(*plus(c, d))
    return pairs.fast_two_sum(*plus(left, right))
