"""CTC on the CPU: sequence by sequence, forwards, then backwards over blocks of frames.

Only one row of α is kept for every block; the others are computed again when the backward recursion comes to their
block: rows of states grow with the root of a sequence's length, and what is worked on stays in cache. What frames emit,
exponentials of the labels' logits, is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.ctc import frames
from refloss.kernels.ctc.frames import Chosen
from refloss.kernels.ctc.states import (
    MARGIN,
    Numbers,
    first_state,
    followed,
    last_state,
    number,
    of_label,
    set_number,
    share,
    stepped,
)
from refloss.kernels.rows import AnyRows, load_strided, row_offset, save_strided
from refloss.numerics import pairs
from refloss.numerics.extended import ONE, ZERO, add, from_pair, logarithm, multiply, probability, ratio
from refloss.numerics.formats import uncounted
from refloss.numerics.pairs import scaled, to_odd

# How many classes are written at a time.
PART = 512


class Task(NamedTuple):
    """CTC as its losses state it: frames are row base + t·stride + n of the logits."""

    logits: np.ndarray
    frame_strides: tuple[int, int]  # rows from a frame to the next, and from a sequence to the next
    is_softmax: bool
    targets: np.ndarray  # one sequence after the other, int64
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    blank: int
    coefficients: np.ndarray  # [N, 2], what each gradient is multiplied by, pairs
    zero_infinity: bool
    gradient: np.ndarray | None


class Terms(NamedTuple):
    """The numbers of a task that kernels need."""

    frame_stride: int
    sequence_stride: int
    length: int
    is_softmax: bool
    zero_infinity: bool
    with_gradient: bool
    coefficients: np.ndarray


class Scratch(NamedTuple):
    """What a thread works in."""

    kept: Numbers  # [blocks, S + 2·MARGIN], α before each block
    alphas: Numbers  # [block + 1, S + 2·MARGIN]
    omegas: Numbers  # [2, S + 2·MARGIN]
    emitted: Numbers  # [T, D]
    spread: Numbers  # [S], of each state
    maxima: np.ndarray  # [T], of frames
    totals: np.ndarray  # [T, 4], S and the part of the classes that are no labels, pairs
    shares: np.ndarray  # [2, S], of states, pairs
    chosen: Chosen
    row: np.ndarray  # [C], in whole lanes, of a softmax
    part: np.ndarray  # [PART]


class Sequence(NamedTuple):
    """One sequence: where its frames are, and what it goes through."""

    rows: AnyRows
    first: int  # row of frame 0
    stride: int
    frames: int
    states: int
    distinct: int  # how many labels are different
    labels: np.ndarray
    slots: np.ndarray
    skips: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    is_softmax: bool
    noise: float


@jit.scalar
def _row(numbers, k):
    return Numbers(numbers.high[k], numbers.low[k], numbers.exponent[k])


@jit.helper
def _load(sequence, t, scratch):
    """A frame's logits without those of the sequence's labels, which are put aside; behind them, −inf."""
    rows = sequence.rows
    load_strided(
        rows, row_offset(rows, sequence.first + t * sequence.stride), rows.class_stride, scratch.row[: rows.classes]
    )
    for i in range(rows.classes, scratch.row.size):
        scratch.row[i] = -np.inf
    for d in range(sequence.distinct):
        scratch.chosen.logits[d] = scratch.row[sequence.labels[d]]


@jit.helper
def _leave_labels_out(sequence, scratch):
    for d in range(sequence.distinct):
        scratch.row[sequence.labels[d]] = -np.inf


@jit.helper
def _emit(sequence, t, maximum, scratch):
    """What a frame emits."""
    emitted, logits = scratch.emitted, scratch.chosen.logits
    for d in range(sequence.distinct):
        emitted.high[t, d], emitted.low[t, d], emitted.exponent[t, d] = probability(logits[d], (maximum, 0.0))


@jit.helper
def _first_look(sequence, t, scratch):
    """A frame's largest logit, what it emits and its sum."""
    scratch.maxima[t] = 0.0
    if not sequence.is_softmax:
        frames.at_labels(
            sequence.rows,
            sequence.first + t * sequence.stride,
            sequence.labels,
            sequence.distinct,
            scratch.chosen.logits,
        )
        _emit(sequence, t, 0.0, scratch)
        return
    _load(sequence, t, scratch)
    maximum = frames.largest(scratch.row)
    scratch.maxima[t] = maximum
    _emit(sequence, t, maximum, scratch)
    _leave_labels_out(sequence, scratch)
    if abs(maximum) < np.inf:
        frames.exponentials(scratch.row, maximum)
        _set_total(scratch, t, frames.of_labels(scratch.emitted, t, sequence.distinct), frames.total_of(scratch.row))
    else:
        _set_total(scratch, t, (np.nan, 0.0), (np.nan, 0.0))


@jit.helper
def _set_total(scratch, t, of_labels, of_others):
    totals = scratch.totals
    totals[t, 0], totals[t, 1] = pairs.add(of_labels, of_others)
    totals[t, 2], totals[t, 3] = of_others


@jit.helper
def _spread(emitted, k, slots, states, spread):
    """What a frame emits in each state."""
    for s in range(states):
        d = slots[s]
        spread.high[s], spread.low[s], spread.exponent[s] = (
            emitted.high[k, d],
            emitted.low[k, d],
            emitted.exponent[k, d],
        )


@jit.scalar
def _part(numbers, start, end):
    """Some of a row: loops that begin at 0 vectorise."""
    return Numbers(numbers.high[start:end], numbers.low[start:end], numbers.exponent[start:end])


@jit.helper
def _advance(previous, spread, skips, following):
    """α of some states from that of the frame before, which begins two states earlier."""
    for s in range(following.high.size):
        here, near, far = number(previous, s + 2), number(previous, s + 1), number(previous, s)
        set_number(following, s, stepped(here, near, far, skips[s], number(spread, s)))


@jit.helper
def _return(behind, spread, skips, alpha, omega, high, low):
    """ω of some states from that of the frame behind it, and the states' shares of all alignments."""
    for s in range(high.size):
        beta = followed(number(behind, s), number(behind, s + 1), number(behind, s + 2), skips[s])
        high[s], low[s] = share(number(alpha, s), beta)
        set_number(omega, s, multiply(beta, number(spread, s)))


@jit.helper
def _clear(row, start):
    for i in range(MARGIN):
        set_number(row, start + i, ZERO)


@jit.helper
def _forward(sequence, start, end, scratch, is_first_time):
    """Rows of α of the frames of a block, from the one before it, which is in row 0."""
    for t in range(start, end):
        k = t - start
        if is_first_time:
            _first_look(sequence, t, scratch)
        _spread(scratch.emitted, t, sequence.slots, sequence.states, scratch.spread)
        first = first_state(sequence.states, sequence.frames, t)
        last = last_state(sequence.states, t)
        following = _row(scratch.alphas, k + 1)
        _advance(
            _part(_row(scratch.alphas, k), first, last + MARGIN),
            _part(scratch.spread, first, last),
            sequence.skips[first:last],
            _part(following, first + MARGIN, last + MARGIN),
        )
        _clear(following, last + MARGIN)


@jit.helper
def _copy_row(source, destination, size):
    for i in range(size):
        set_number(destination, i, number(source, i))


@jit.helper
def _begin(row, size):
    """The row before frame 0: one that is before all states."""
    for i in range(size):
        set_number(row, i, ZERO)
    set_number(row, MARGIN - 1, ONE)


@jit.helper
def _all_forward(sequence, block, scratch):
    """The sum over all alignments, and what the frames' sums multiply it by; in rows of α, those of the last block."""
    size, norm, poisoned = sequence.states + 2 * MARGIN, ONE, 0
    _begin(_row(scratch.alphas, 0), size)
    end = 0
    for start in range(0, sequence.frames, block):
        if start:
            _copy_row(_row(scratch.alphas, block), _row(scratch.alphas, 0), size)
        _copy_row(_row(scratch.alphas, 0), _row(scratch.kept, start // block), size)
        end = min(start + block, sequence.frames)
        _forward(sequence, start, end, scratch, True)
        for t in range(start, end):
            for d in range(sequence.distinct):
                poisoned |= 1 if scratch.emitted.high[t, d] != scratch.emitted.high[t, d] else 0
            if sequence.is_softmax:
                norm = multiply(norm, from_pair((scratch.totals[t, 0], scratch.totals[t, 1])))
    if poisoned or norm[0] != norm[0]:
        return (np.nan, 0.0, 0), norm
    if sequence.states > 2 * sequence.frames + 1:
        return ZERO, norm
    if sequence.frames == 0:
        return ONE, norm
    last, row = (end - 1) % block + 1, sequence.states + MARGIN - 1
    alpha = _row(scratch.alphas, last)
    return add(number(alpha, row), number(alpha, row - 1)), norm


@jit.helper
def _differences(sequence, t, scratch, shares):
    """p − γ of the labels of a frame; whether one of them is not known well enough."""
    chosen, totals = scratch.chosen, scratch.totals
    inverse, others, sure, close = (1.0, 0.0), (0.0, 0.0), -1, False
    if sequence.is_softmax:
        inverse = pairs.divide((1.0, 0.0), (totals[t, 0], totals[t, 1]))
        others = pairs.multiply((totals[t, 2], totals[t, 3]), inverse)
    for d in range(sequence.distinct):
        gamma = of_label(shares[0], shares[1], sequence.order, sequence.starts[d], sequence.starts[d + 1])
        chosen.gamma[d], chosen.gamma_low[d] = gamma
        emitted = (scratch.emitted.high[t, d], scratch.emitted.low[t, d], scratch.emitted.exponent[t, d])
        (chosen.high[d], chosen.low[d]), p = frames.difference(emitted, inverse, gamma, sequence.noise)
        if p > frames.SURE and gamma[0] > frames.SURE:
            sure = d
        else:
            close |= frames.is_close(chosen.high[d], p, others[0])
    if sure >= 0:
        value = frames.sure_difference(chosen, sequence.distinct, sure, others, sequence.is_softmax, sequence.noise)
        chosen.high[sure], chosen.low[sure] = value
        close |= frames.is_close(value[0], 1.0, others[0])
    return close


@jit.helper
def _frame_gradient(sequence, t, scratch, coefficient, gradient):
    """The gradient of a frame: c·p for all classes, then c·(p − γ) for labels."""
    chosen, totals, frame = scratch.chosen, scratch.totals, sequence.first + t * sequence.stride
    frames.at_labels(sequence.rows, frame, sequence.labels, sequence.distinct, chosen.logits)
    if _differences(sequence, t, scratch, scratch.shares):
        _load(sequence, t, scratch)
        _leave_labels_out(sequence, scratch)
        of_others = frames.accurate_total(scratch.row, scratch.maxima[t])
        _set_total(scratch, t, frames.of_labels(scratch.emitted, t, sequence.distinct), of_others)
        _differences(sequence, t, scratch, scratch.shares)
    factor = coefficient
    if sequence.is_softmax:
        factor = pairs.divide(coefficient, (totals[t, 0], totals[t, 1]))
    _write_probabilities(sequence, t, scratch, factor, gradient)
    for d in range(sequence.distinct):
        value = scaled((chosen.high[d], chosen.low[d]), coefficient)
        chosen.high[d] = to_odd(value) if gradient.format != 0 else value[0]
    frames.put_at_labels(chosen.high, gradient, frame, sequence.labels, sequence.distinct)


@jit.helper
def _write_probabilities(sequence, t, scratch, factor, gradient):
    """A factor times the exponentials of all classes, some at a time, so that they stay in cache."""
    rows, frame = sequence.rows, sequence.first + t * sequence.stride
    source, destination = row_offset(rows, frame), row_offset(gradient, frame)
    for start in range(0, rows.classes, PART):
        part = scratch.part[: min(PART, rows.classes - start)]
        load_strided(rows, source + start * rows.class_stride, rows.class_stride, part)
        if sequence.is_softmax:
            frames.exponentials(part, scratch.maxima[t])
        else:
            frames.plain_exponentials(part)
        frames.multiply(part, factor, gradient.format != 0)
        save_strided(part, gradient, destination + start * gradient.class_stride, gradient.class_stride)


@jit.helper
def _fill(sequence, start, end, value, scratch, gradient):
    """One value for all elements of some frames."""
    for i in range(PART):
        scratch.part[i] = value
    for t in range(start, end):
        offset = row_offset(gradient, sequence.first + t * sequence.stride)
        for first in range(0, gradient.classes, PART):
            part = scratch.part[: min(PART, gradient.classes - first)]
            save_strided(part, gradient, offset + first * gradient.class_stride, gradient.class_stride)


@jit.helper
def _all_backward(sequence, block, scratch, inverse, coefficient, gradient):
    """The gradient of every frame, from the last one on; the last block's rows of α are there."""
    states = sequence.states
    behind = _row(scratch.omegas, 0)
    for i in range(states + 2 * MARGIN):
        set_number(behind, i, ZERO)
    set_number(behind, states + MARGIN, inverse)
    last_block = (sequence.frames - 1) // block
    for number_of_block in range(last_block, -1, -1):
        start = number_of_block * block
        end = min(start + block, sequence.frames)
        if number_of_block < last_block:
            _copy_row(_row(scratch.kept, number_of_block), _row(scratch.alphas, 0), states + 2 * MARGIN)
            _forward(sequence, start, end, scratch, False)
        for t in range(end - 1, start - 1, -1):
            k = t - start
            _spread(scratch.emitted, t, sequence.slots, states, scratch.spread)
            first = first_state(states, sequence.frames, t)
            last = last_state(states, t)
            for s in range(states):
                scratch.shares[0, s] = scratch.shares[1, s] = 0.0
            omega = _row(scratch.omegas, (sequence.frames - t) % 2)
            _return(
                _part(_row(scratch.omegas, (sequence.frames - 1 - t) % 2), first + MARGIN, last + 2 * MARGIN),
                _part(scratch.spread, first, last),
                sequence.skips[first + 2 : last + 2],
                _part(_row(scratch.alphas, k + 1), first + MARGIN, last + MARGIN),
                _part(omega, first + MARGIN, last + MARGIN),
                scratch.shares[0, first:last],
                scratch.shares[1, first:last],
            )
            _clear(omega, first)
            _clear(omega, last + MARGIN)
            _frame_gradient(sequence, t, scratch, coefficient, gradient)


@jit.helper
def _loss_and_gradient(sequence, length, block, scratch, terms, n, nll, gradient):
    total, norm = _all_forward(sequence, block, scratch)
    impossible = total[0] == 0.0
    if impossible:
        nll[n, 0], nll[n, 1] = 0.0 if terms.zero_infinity else np.inf, 0.0
    else:
        nll[n, 0], nll[n, 1] = logarithm(ratio(norm, total))
    if not terms.with_gradient:
        return
    if impossible or total[0] != total[0]:
        value = 0.0 if impossible and terms.zero_infinity else np.nan
        _fill(sequence, 0, sequence.frames, value, scratch, gradient)
    else:
        coefficient = terms.coefficients[n, 0], terms.coefficients[n, 1]
        _all_backward(sequence, block, scratch, ratio(ONE, total), coefficient, gradient)
    _fill(sequence, sequence.frames, length, 0.0, scratch, gradient)


@jit.kernel
def ctc_sequences(rows, gradient, paths, terms, scratch, nll, first, last):
    """−log of the sum over all alignments of sequences first ... last, as pairs [N, 2], and their gradients."""
    # Counting the references of some forty arrays, call by call, would cost as much as the arithmetic of a frame.
    source, destination, plan, space = uncounted(rows), uncounted(gradient), uncounted(paths), uncounted(scratch)
    for n in range(first, last):
        sequence = Sequence(
            source,
            n * terms.sequence_stride,
            terms.frame_stride,
            plan.frames[n],
            plan.states[n],
            plan.distinct[n],
            plan.labels[n],
            plan.slots[n],
            plan.skips[n],
            plan.starts[n],
            plan.order[n],
            terms.is_softmax,
            frames.noise_of(plan.frames[n]),
        )
        block = space.alphas.high.shape[0] - 1
        _loss_and_gradient(sequence, terms.length, block, space, terms, n, nll, destination)
