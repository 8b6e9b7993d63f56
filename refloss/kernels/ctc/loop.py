"""CTC on the CPU: sequence by sequence, forwards, then backwards over blocks of frames.

Only one row of α is kept for every block; the others are computed again when the backward recursion comes to their
block: rows of states grow with the root of a sequence's length, and what is worked on stays in cache. What frames emit,
exponentials of the labels' logits, is kept.

Where there are more threads than sequences, they may share a sequence: both recursions go on at the same time, keeping
one row for every block, and then blocks are independent of each other. ω begins with 1, not with 1/Σ, so that nothing
in it depends on the other recursion. The arithmetic is the same either way, and so are the bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.ctc import frames
from refloss.kernels.ctc.frames import Chosen
from refloss.kernels.ctc.states import (
    GROUP,
    MARGIN,
    Numbers,
    arrived,
    first_pair,
    followed,
    last_pair,
    met,
    number,
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
# What is done with sequences: all at once, or one step of it with as many threads as there are.
WHOLE, LOOK, SWEEP, SLOPES = range(4)


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


class Lattice(NamedTuple):
    """What is known of sequences at work, each in a slot of its own."""

    alphas: Numbers  # [slots, blocks, 2·(P + 2·MARGIN)], α before each block of frames, blanks and then labels
    omegas: Numbers  # [slots, blocks, 2·(P + 2·MARGIN)], ω behind each block
    emitted: Numbers  # [slots, T, D]
    maxima: np.ndarray  # [slots, T], of frames
    totals: np.ndarray  # [slots, T, 4], S and the part of the classes that are no labels, pairs
    ends: Numbers  # [slots, 2], the sum over all alignments, and what the frames' sums multiply it by


class Scratch(NamedTuple):
    """What a thread works in."""

    alphas: Numbers  # [block + 1, 2·(P + 2·MARGIN)]
    omegas: Numbers  # [2, 2·(P + 2·MARGIN)]
    emitted: Numbers  # [block, P], for each label in order
    betas: Numbers  # [2, P], of what a frame has of a row
    shares: np.ndarray  # [4, P], of blanks and of labels, pairs
    lanes: np.ndarray  # [2, LANES]
    chosen: Chosen
    row: np.ndarray  # [C], in whole lanes, of a softmax
    parts: np.ndarray  # [2, PART], some classes of a row, and what is written


class Sequence(NamedTuple):
    """One sequence: where its frames are, what it goes through, and what is known of it."""

    rows: AnyRows
    first: int  # row of frame 0
    stride: int
    frames: int
    label_count: int  # how many there are, repeated ones too
    distinct: int  # how many of them are different, blank among them
    labels: np.ndarray
    slots: np.ndarray
    skips: np.ndarray
    is_softmax: bool
    noise: float
    block: int  # how many frames are worked on together
    alphas: Numbers
    omegas: Numbers
    emitted: Numbers
    maxima: np.ndarray
    totals: np.ndarray
    ends: Numbers


@jit.scalar
def _row(numbers, k):
    return Numbers(numbers.high[k], numbers.low[k], numbers.exponent[k])


@jit.scalar
def _some(numbers, start, end):
    return Numbers(numbers.high[start:end], numbers.low[start:end], numbers.exponent[start:end])


@jit.scalar
def _part(numbers, kind, start, end):
    """Some of a row of blanks, or of the labels behind them: loops that begin at 0 vectorise."""
    offset = kind * (numbers.high.size // 2) + MARGIN
    return _some(numbers, offset + start, offset + end)


@jit.helper
def _load(rows, frame, labels, distinct, row, logits):
    """A frame's logits without those of the sequence's labels, which are put aside; behind them, −inf."""
    load_strided(rows, row_offset(rows, frame), rows.class_stride, row[: rows.classes])
    for i in range(rows.classes, row.size):
        row[i] = -np.inf
    for d in range(distinct):
        logits[d] = row[labels[d]]


@jit.helper
def _leave_labels_out(labels, distinct, row):
    for d in range(distinct):
        row[labels[d]] = -np.inf


@jit.helper
def _emit(emitted, distinct, maximum, logits):
    """What a frame emits; nothing in slots that are no label's."""
    groups = min((distinct + GROUP - 1) // GROUP * GROUP, logits.size)
    for d in range(distinct, groups):
        logits[d] = -np.inf
    for d in range(groups):
        set_number(emitted, d, probability(logits[d], (maximum, 0.0)))
    for d in range(groups, logits.size):
        set_number(emitted, d, ZERO)


@jit.scalar
def _look(sequence, t, scratch):
    """A frame's largest logit, what it emits and its sum."""
    logits, frame = scratch.chosen.logits, sequence.first + t * sequence.stride
    sequence.maxima[t] = 0.0
    if not sequence.is_softmax:
        frames.at_labels(sequence.rows, frame, sequence.labels, sequence.distinct, logits)
        _emit(_row(sequence.emitted, t), sequence.distinct, 0.0, logits)
        return
    _load(sequence.rows, frame, sequence.labels, sequence.distinct, scratch.row, logits)
    maximum = frames.largest(scratch.row, scratch.lanes)
    sequence.maxima[t] = maximum
    _emit(_row(sequence.emitted, t), sequence.distinct, maximum, logits)
    _leave_labels_out(sequence.labels, sequence.distinct, scratch.row)
    if abs(maximum) < np.inf:
        _set_total(sequence, t, scratch, frames.total_of_exponentials(scratch.row, maximum, scratch.lanes))
    else:
        for k in range(4):
            sequence.totals[t, k] = np.nan


@jit.helper
def _look_at(sequence, start, end, scratch):
    """The same of the frames of a block."""
    for t in range(start, end):
        _look(sequence, t, scratch)


@jit.scalar
def _set_total(sequence, t, scratch, of_others):
    of_labels, totals = frames.of_labels(sequence.emitted, t, scratch.chosen, scratch.lanes), sequence.totals
    totals[t, 0], totals[t, 1] = pairs.add(of_labels, of_others)
    totals[t, 2], totals[t, 3] = of_others


@jit.scalar
def _spread(emitted, t, slots, destination, k):
    """What a frame emits for each label."""
    high, low, exponent = destination.high[k], destination.low[k], destination.exponent[k]
    high_at, low_at, exponent_at = emitted.high[t], emitted.low[t], emitted.exponent[t]
    for i in range(slots.size):
        # An index that may be negative takes as many instructions as the copy.
        d = np.uint64(slots[i])
        high[i], low[i], exponent[i] = high_at[d], low_at[d], exponent_at[d]


@jit.helper
def _advance(blanks, labels, blank, emitted, skips, next_blanks, next_labels):
    """α of some pairs from that of the frame before; labels begin one earlier."""
    for i in range(skips.size):
        set_number(next_blanks, i, stepped(met(number(blanks, i), number(labels, i)), blank))
    for i in range(skips.size):
        total = arrived(number(labels, i + 1), number(blanks, i), number(labels, i), skips[i])
        set_number(next_labels, i, stepped(total, number(emitted, i)))


@jit.helper
def _return(blanks, labels, blank, emitted, skips, betas, next_blanks, next_labels):
    """β of some pairs, and ω, from ω of the frame behind; both kinds end one later."""
    of_blanks, of_labels = _row(betas, 0), _row(betas, 1)
    for i in range(skips.size):
        beta = followed(met(number(blanks, i), number(labels, i)))
        set_number(of_blanks, i, beta)
        set_number(next_blanks, i, multiply(beta, blank))
    for i in range(skips.size):
        beta = followed(arrived(number(labels, i), number(blanks, i + 1), number(labels, i + 1), skips[i]))
        set_number(of_labels, i, beta)
        set_number(next_labels, i, multiply(beta, number(emitted, i)))


@jit.helper
def _share(alphas, betas, exponent, high, low):
    """α·β of some states, times 2^exponent."""
    for i in range(high.size):
        high[i], low[i] = share(number(alphas, i), number(betas, i), exponent)


@jit.scalar
def _clear_group(row, kind, start):
    group = _part(row, kind, start, start + GROUP)
    for i in range(GROUP):
        set_number(group, i, ZERO)


@jit.scalar
def _clear_around(row, start, end):
    """Zeros beside what a frame has of a row: the next one sees a group more."""
    for kind in range(2):
        _clear_group(row, kind, start - GROUP)
        _clear_group(row, kind, end)


@jit.helper
def _advance_frames(sequence, start, end, scratch):
    """Rows of α of the frames of a block, from the one before it, which is in row 0."""
    emitted = sequence.emitted
    for t in range(start, end):
        k = t - start
        _spread(emitted, t, sequence.slots, scratch.emitted, k)
        first, last = first_pair(sequence.label_count, sequence.frames, t), min(last_pair(t), sequence.slots.size)
        previous, following = _row(scratch.alphas, k), _row(scratch.alphas, k + 1)
        _advance(
            _part(previous, 0, first, last),
            _part(previous, 1, first - 1, last),
            (emitted.high[t, 0], emitted.low[t, 0], emitted.exponent[t, 0]),
            _some(_row(scratch.emitted, k), first, last),
            sequence.skips[first:last],
            _part(following, 0, first, last),
            _part(following, 1, first, last),
        )
        _clear_around(following, first, last)


@jit.scalar
def _return_frame(sequence, t, emitted, scratch):
    """ω of a frame from that of the frame behind it."""
    first, last = first_pair(sequence.label_count, sequence.frames, t), min(last_pair(t), sequence.slots.size)
    behind = _row(scratch.omegas, (sequence.frames - 1 - t) % 2)
    omega = _row(scratch.omegas, (sequence.frames - t) % 2)
    _return(
        _part(behind, 0, first, last + 1),
        _part(behind, 1, first, last + 1),
        (sequence.emitted.high[t, 0], sequence.emitted.low[t, 0], sequence.emitted.exponent[t, 0]),
        _some(emitted, first, last),
        sequence.skips[first + 1 : last + 1],
        scratch.betas,
        _part(omega, 0, first, last),
        _part(omega, 1, first, last),
    )
    _clear_around(omega, first, last)


@jit.helper
def _copy_row(source, destination):
    for i in range(source.high.size):
        set_number(destination, i, number(source, i))


@jit.helper
def _begin(row, pair):
    """Zeros but for a label that is there: the one before the first, or behind the last."""
    for i in range(row.high.size):
        set_number(row, i, ZERO)
    set_number(_part(row, 1, pair, pair + 1), 0, ONE)


@jit.helper
def _forward(sequence, scratch, looks):
    """Rows of α, of which those before each block are kept; then the sum over all alignments."""
    block = sequence.block
    _begin(_row(scratch.alphas, 0), -1)
    for start in range(0, sequence.frames, block):
        end = min(start + block, sequence.frames)
        if looks:
            _look_at(sequence, start, end, scratch)
        if start:
            _copy_row(_row(scratch.alphas, block), _row(scratch.alphas, 0))
        _copy_row(_row(scratch.alphas, 0), _row(sequence.alphas, start // block))
        _advance_frames(sequence, start, end, scratch)
    total, norm = _ends(sequence, scratch)
    set_number(sequence.ends, 0, total)
    set_number(sequence.ends, 1, norm)


@jit.helper
def _ends(sequence, scratch):
    """The sum over all alignments, and what the frames' sums multiply it by."""
    norm, poisoned, count = ONE, 0, sequence.label_count
    for t in range(sequence.frames):
        for d in range(sequence.distinct):
            poisoned |= 1 if sequence.emitted.high[t, d] != sequence.emitted.high[t, d] else 0
        if sequence.is_softmax:
            norm = multiply(norm, from_pair((sequence.totals[t, 0], sequence.totals[t, 1])))
    if poisoned or norm[0] != norm[0]:
        return (np.nan, 0.0, 0), norm
    if count > sequence.frames:
        return ZERO, norm
    if sequence.frames == 0:
        return ONE, norm
    alpha = _row(scratch.alphas, (sequence.frames - 1) % sequence.block + 1)
    return add(number(_part(alpha, 0, count, count + 1), 0), number(_part(alpha, 1, count - 1, count), 0)), norm


@jit.scalar
def _gammas(sequence, t, k, inverse, scratch):
    """γ of the labels of a frame: sums of their states' shares, in pairs."""
    first, last = first_pair(sequence.label_count, sequence.frames, t), min(last_pair(t), sequence.slots.size)
    shares, gamma, gamma_low = scratch.shares, scratch.chosen.gamma, scratch.chosen.gamma_low
    for kind in range(2):
        high, low = shares[2 * kind, first:last], shares[2 * kind + 1, first:last]
        alphas = _part(_row(scratch.alphas, k + 1), kind, first, last)
        _share(alphas, _some(_row(scratch.betas, kind), 0, last - first), inverse[2], high, low)
    for d in range(gamma.size):
        gamma[d] = gamma_low[d] = 0.0
    gamma[0], gamma_low[0] = frames.total_of_pairs(shares[0, first:last], shares[1, first:last], scratch.lanes)
    end = max(first, min(last, sequence.label_count))
    slots, high, low = sequence.slots[first:end], shares[2, first:end], shares[3, first:end]
    for i in range(slots.size):
        label = np.uint64(slots[i])
        total = frames.with_pair((gamma[label], gamma_low[label]), (high[i], low[i]))
        gamma[label], gamma_low[label] = total
    for d in range(gamma.size):
        gamma[d], gamma_low[d] = pairs.multiply((gamma[d], gamma_low[d]), (inverse[0], inverse[1]))


@jit.helper
def _differences(emitted, totals, is_softmax, noise, chosen):
    """p − γ of the labels of a frame.

    Returns: whether one is not known well enough, whether one is sure, and the part of the classes that are no labels.
    """
    inverse, others, sure, close = (1.0, 0.0), (0.0, 0.0), 0, 0
    if is_softmax:
        inverse = pairs.divide((1.0, 0.0), (totals[0], totals[1]))
        others = pairs.multiply((totals[2], totals[3]), inverse)
    for d in range(chosen.high.size):
        gamma = chosen.gamma[d], chosen.gamma_low[d]
        value, p = frames.difference(number(emitted, d), inverse, gamma, noise)
        chosen.high[d], chosen.low[d], chosen.p[d] = value[0], value[1], p
    for d in range(chosen.high.size):
        is_sure = frames.is_sure(chosen.p[d], chosen.gamma[d])
        sure |= 1 if is_sure else 0
        close |= 1 if not is_sure and frames.is_close(chosen.high[d], chosen.p[d], others[0]) else 0
    return close, sure, others


@jit.helper
def _set_sure(rows, frame, labels, distinct, others, is_softmax, noise, chosen):
    """The difference of a label that is sure; whether it is not known well enough."""
    sure = 0
    for d in range(distinct):
        sure = d if frames.is_sure(chosen.p[d], chosen.gamma[d]) else sure
    frames.at_labels(rows, frame, labels, distinct, chosen.logits)
    value = frames.sure_difference(chosen, distinct, sure, others, is_softmax, noise)
    chosen.high[sure], chosen.low[sure] = value
    return frames.is_close(value[0], 1.0, others[0])


@jit.helper
def _total_again(sequence, t, scratch):
    """The sums of a frame of which a difference leaves too little, in pairs."""
    frame = sequence.first + t * sequence.stride
    _load(sequence.rows, frame, sequence.labels, sequence.distinct, scratch.row, scratch.chosen.logits)
    _leave_labels_out(sequence.labels, sequence.distinct, scratch.row)
    _set_total(sequence, t, scratch, frames.accurate_total(scratch.row, sequence.maxima[t], scratch.lanes))


@jit.scalar
def _all_differences(sequence, t, scratch):
    """p − γ of the labels of a frame, well enough."""
    chosen, frame, is_softmax = scratch.chosen, sequence.first + t * sequence.stride, sequence.is_softmax
    for attempt in range(2):
        close, sure, others = _differences(
            _row(sequence.emitted, t), sequence.totals[t], is_softmax, sequence.noise, chosen
        )
        if sure and _set_sure(
            sequence.rows, frame, sequence.labels, sequence.distinct, others, is_softmax, sequence.noise, chosen
        ):
            close = 1
        if attempt or not close:
            break
        _total_again(sequence, t, scratch)


@jit.helper
def _scale(chosen, coefficient, is_narrow):
    """Differences times a pair; rounded to odd, if their format has fewer bits than float64."""
    for d in range(chosen.high.size):
        value = scaled((chosen.high[d], chosen.low[d]), coefficient)
        chosen.high[d] = to_odd(value) if is_narrow else value[0]


@jit.scalar
def _frame_gradient(sequence, t, scratch, coefficient, gradient):
    """The gradient of a frame: c·p for all classes, then c·(p − γ) for labels."""
    totals, frame, factor = sequence.totals, sequence.first + t * sequence.stride, coefficient
    _all_differences(sequence, t, scratch)
    if sequence.is_softmax:
        factor = pairs.divide(coefficient, (totals[t, 0], totals[t, 1]))
    _write_probabilities(sequence.rows, gradient, frame, sequence.is_softmax, sequence.maxima[t], factor, scratch.parts)
    _scale(scratch.chosen, coefficient, gradient.format != 0)
    frames.put_at_labels(scratch.chosen.high, gradient, frame, sequence.labels, sequence.distinct)


@jit.helper
def _write_probabilities(rows, gradient, frame, is_softmax, maximum, factor, space):
    """A factor times the exponentials of all classes, some at a time, so that they stay in cache."""
    source, destination = row_offset(rows, frame), row_offset(gradient, frame)
    for start in range(0, rows.classes, PART):
        size = min(PART, rows.classes - start)
        part, products = space[0, :size], space[1, :size]
        load_strided(rows, source + start * rows.class_stride, rows.class_stride, part)
        if is_softmax:
            frames.exponentials(part, maximum)
        else:
            frames.plain_exponentials(part)
        frames.multiply(part, factor, gradient.format, products)
        save_strided(products, gradient, destination + start * gradient.class_stride, gradient.class_stride)


@jit.helper
def _fill(sequence, start, end, value, scratch, gradient):
    """One value for all elements of some frames."""
    space = scratch.parts[0]
    for i in range(PART):
        space[i] = value
    for t in range(start, end):
        offset = row_offset(gradient, sequence.first + t * sequence.stride)
        for first in range(0, gradient.classes, PART):
            part = space[: min(PART, gradient.classes - first)]
            save_strided(part, gradient, offset + first * gradient.class_stride, gradient.class_stride)


@jit.scalar
def _rows_of_block(sequence, start, end, scratch, stage):
    """What a backward recursion over the frames of a block begins with: ω behind them, what they emit, and α."""
    behind = _row(scratch.omegas, (sequence.frames - end) % 2)
    if stage == SLOPES:
        _copy_row(_row(sequence.omegas, start // sequence.block), behind)
    elif end == sequence.frames:
        _begin(behind, sequence.label_count)
    if stage == SWEEP:
        _copy_row(behind, _row(sequence.omegas, start // sequence.block))
        for t in range(start, end):
            _spread(sequence.emitted, t, sequence.slots, scratch.emitted, t - start)
    elif stage == SLOPES or end < sequence.frames:
        _copy_row(_row(sequence.alphas, start // sequence.block), _row(scratch.alphas, 0))
        _advance_frames(sequence, start, end, scratch)


@jit.helper
def _backward(sequence, first, last, scratch, stage, coefficient, gradient):
    """ω of the frames of some blocks, the last one first, and their gradients."""
    inverse = ONE if stage == SWEEP else ratio(ONE, number(sequence.ends, 0))
    for b in range(last - 1, first - 1, -1):
        start, end = b * sequence.block, min((b + 1) * sequence.block, sequence.frames)
        _rows_of_block(sequence, start, end, scratch, stage)
        for t in range(end - 1, start - 1, -1):
            _return_frame(sequence, t, _row(scratch.emitted, t - start), scratch)
            if stage != SWEEP:
                _gammas(sequence, t, t - start, inverse, scratch)
                _frame_gradient(sequence, t, scratch, coefficient, gradient)


@jit.helper
def _gradient(sequence, first, last, scratch, stage, terms, n, gradient):
    """The gradient of the frames of some blocks, or ω alone."""
    total = sequence.ends.high[0]
    if stage == SWEEP or (total == total and total != 0.0):
        coefficient = terms.coefficients[n, 0], terms.coefficients[n, 1]
        _backward(sequence, first, last, scratch, stage, coefficient, gradient)
    else:
        value = 0.0 if total == 0.0 and terms.zero_infinity else np.nan
        end = min(last * sequence.block, sequence.frames)
        _fill(sequence, first * sequence.block, end, value, scratch, gradient)


@jit.helper
def _set_loss(sequence, terms, n, nll):
    total, norm = number(sequence.ends, 0), number(sequence.ends, 1)
    if total[0] == 0.0:
        nll[n, 0], nll[n, 1] = 0.0 if terms.zero_infinity else np.inf, 0.0
    else:
        nll[n, 0], nll[n, 1] = logarithm(ratio(norm, total))


@jit.scalar
def _sequence(rows, paths, terms, lattice, n, slot, block):
    return Sequence(
        rows,
        n * terms.sequence_stride,
        terms.frame_stride,
        paths.frames[n],
        paths.counts[n],
        paths.distinct[n],
        paths.labels[n],
        paths.slots[n],
        paths.skips[n],
        terms.is_softmax,
        frames.noise_of(paths.frames[n]),
        block,
        _row(lattice.alphas, slot),
        _row(lattice.omegas, slot),
        _row(lattice.emitted, slot),
        lattice.maxima[slot],
        lattice.totals[slot],
        _row(lattice.ends, slot),
    )


@jit.kernel
def ctc_sequences(rows, gradient, paths, terms, lattice, scratch, nll, stage, parts, first, last):
    """−log of the sum over all alignments of sequences, as pairs [N, 2], and their gradients.

    Items first ... last are sequences, or parts of them that can be worked on at the same time: blocks of frames to
    look at; both directions; blocks of frames again, for their gradients.
    """
    # Counting the references of some forty arrays, call by call, would cost as much as the arithmetic of a frame.
    source, destination, plan, space = uncounted(rows), uncounted(gradient), uncounted(paths), uncounted(scratch)
    known, block = uncounted(lattice), scratch.alphas.high.shape[0] - 1
    for item in range(first, last):
        n, part = item // parts, item % parts
        sequence = _sequence(source, plan, terms, known, n, 0 if stage == WHOLE else n, block)
        begin, end = 0, -(-sequence.frames // block)
        if stage in (LOOK, SLOPES):
            begin, end = min(part, end), min(part + 1, end)
        if stage == LOOK:
            _look_at(sequence, begin * block, min(end * block, sequence.frames), space)
        if stage == WHOLE or (stage == SWEEP and part == 0):
            _forward(sequence, space, stage == WHOLE)
            _set_loss(sequence, terms, n, nll)
        slopes = terms.with_gradient and stage in (WHOLE, SLOPES)
        if slopes or (stage == SWEEP and part == 1):
            _gradient(sequence, begin, end, space, stage, terms, n, destination)
        if slopes and part == 0:
            _fill(sequence, sequence.frames, terms.length, 0.0, space, destination)
