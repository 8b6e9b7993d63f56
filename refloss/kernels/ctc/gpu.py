"""CTC on a GPU: a block for each sequence, whose threads share out states, labels and classes; bits are the CPU's.

All rows of α are kept. What the CPU adds up one after the other, one thread adds up here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.ctc import frames
from refloss.kernels.ctc.frames import LANES, Chosen
from refloss.kernels.ctc.states import Numbers, arrived, first_pair, followed, number, set_number, share, stepped
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.numerics import pairs
from refloss.numerics.exponential import exp_difference
from refloss.numerics.extended import (
    ONE,
    ZERO,
    add,
    as_pair,
    from_pair,
    logarithm,
    multiply,
    plus,
    probability,
    ratio,
)
from refloss.numerics.formats import read, store_pair
from refloss.numerics.pairs import scaled

if TYPE_CHECKING:
    from refloss.kernels.ctc.loop import Task, Terms
    from refloss.kernels.ctc.states import Paths

_BLOCK = 128
# Zeros on either side of a row of states.
_MARGIN = 2
# What all blocks' rows of α may take together.
_MOST_BYTES = 1 << 29


class Workspace(NamedTuple):
    """What each block works in."""

    alphas: Numbers  # [B, T + 1, S + 2·_MARGIN]
    omegas: Numbers  # [B, 2, S + 2·_MARGIN]
    emitted: Numbers  # [B, D]
    totals: np.ndarray  # [B, T, 5], m, S and the part of the classes that are no labels
    shares: np.ndarray  # [B, 2, S]
    chosen: np.ndarray  # [B, 6, D]
    lanes: np.ndarray  # [B, 2, LANES]
    row: np.ndarray  # [B, C], in whole lanes


@gpu_function
def _row(numbers, block, k):
    return Numbers(numbers.high[block, k], numbers.low[block, k], numbers.exponent[block, k])


@gpu_function
def _flat(numbers, block):
    return Numbers(numbers.high[block], numbers.low[block], numbers.exponent[block])


@gpu_function
def _load(rows, frame, labels, distinct, row, logits):
    """A frame's logits without those of the sequence's labels, which are put aside."""
    cuda.syncthreads()
    offset = row_offset(rows, frame)
    for i in range(cuda.threadIdx.x, row.size, cuda.blockDim.x):
        row[i] = read(rows.memory, offset + i * rows.class_stride) if i < rows.classes else -np.inf
    cuda.syncthreads()
    for d in range(cuda.threadIdx.x, distinct, cuda.blockDim.x):
        logits[d] = row[labels[d]]


@gpu_function
def _leave_labels_out(row, labels, distinct):
    cuda.syncthreads()
    for d in range(cuda.threadIdx.x, distinct, cuda.blockDim.x):
        row[labels[d]] = -np.inf
    cuda.syncthreads()


@gpu_function
def _largest(row, lanes):
    """As frames.largest."""
    for lane in range(cuda.threadIdx.x, LANES, cuda.blockDim.x):
        top, undefined = -np.inf, False
        for i in range(lane, row.size, LANES):
            undefined |= row[i] != row[i]
            top = row[i] if row[i] > top else top
        lanes[0, lane] = np.nan if undefined else top
    cuda.syncthreads()
    top = lanes[0, 0]
    for lane in range(1, LANES):
        here = lanes[0, lane]
        top = here if here > top or here != here else top
    cuda.syncthreads()
    return top


@gpu_function
def _folded(lanes):
    """The sum of what lanes have, which it spoils."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        lanes[0, 0], lanes[1, 0] = frames.folded(lanes)
    cuda.syncthreads()
    result = lanes[0, 0], lanes[1, 0]
    cuda.syncthreads()
    return result


@gpu_function
def _total_of(row, lanes, maximum, is_accurate):
    """As frames.accurate_total, or frames.total_of_exponentials."""
    for lane in range(cuda.threadIdx.x, LANES, cuda.blockDim.x):
        total = (0.0, 0.0)
        for i in range(lane, row.size, LANES):
            total = frames.with_term(total, row[i], maximum) if is_accurate else plus(total, (row[i], 0.0))
        lanes[0, lane], lanes[1, lane] = total
    return _folded(lanes)


@gpu_function
def _exponentials(row, maximum, is_softmax):
    for i in range(cuda.threadIdx.x, row.size, cuda.blockDim.x):
        row[i] = exp_difference(row[i], maximum) if is_softmax else frames.plain_exponential(row[i])
    cuda.syncthreads()


@gpu_function
def _emit(logits, distinct, maximum, emitted):
    for d in range(cuda.threadIdx.x, distinct, cuda.blockDim.x):
        set_number(emitted, d, probability(logits[d], (maximum, 0.0)))
    cuda.syncthreads()


@gpu_function
def _of_labels(emitted, distinct, lanes):
    """As frames.of_labels."""
    for lane in range(cuda.threadIdx.x, LANES, cuda.blockDim.x):
        total = (0.0, 0.0)
        for d in range(lane, distinct, LANES):
            total = frames.with_pair(total, as_pair(number(emitted, d)))
        lanes[0, lane], lanes[1, lane] = total
    return _folded(lanes)


@gpu_function
def _set_totals(totals, of_labels, of_others):
    if cuda.threadIdx.x == 0:
        totals[1], totals[2] = pairs.add(of_labels, of_others)
        totals[3], totals[4] = of_others
    cuda.syncthreads()


@gpu_function
def _first_look(rows, frame, labels, distinct, is_softmax, row, lanes, logits, emitted, totals):
    """A frame's largest logit, what it emits and its sum."""
    _load(rows, frame, labels, distinct, row, logits)
    maximum = _largest(row, lanes) if is_softmax else 0.0
    cuda.syncthreads()
    _emit(logits, distinct, maximum, emitted)
    if cuda.threadIdx.x == 0:
        totals[0] = maximum
    if not is_softmax:
        return
    if abs(maximum) < np.inf:
        _leave_labels_out(row, labels, distinct)
        _exponentials(row, maximum, True)
        _set_totals(totals, _of_labels(emitted, distinct, lanes), _total_of(row, lanes, maximum, False))
    else:
        _set_totals(totals, (np.nan, 0.0), (np.nan, 0.0))


@gpu_function
def _first_state(states, count, t):
    """The first state of frame t from which the rest can be finished."""
    return max(0, states - 2 * (count - t))


@gpu_function
def _last_state(states, t):
    """The state behind the last one that frame t can be in."""
    return min(states, 2 * (t + 1))


@gpu_function
def _slot(paths, n, s):
    return paths.slots[n, s // 2] if s % 2 else 0


@gpu_function
def _skip(paths, n, s):
    """Whether the state two before may come directly before; no blank may."""
    return paths.skips[n, s // 2] if s % 2 else 0


@gpu_function
def _advance(previous, emitted, paths, n, first, last, following):
    for s in range(first + cuda.threadIdx.x, last, cuda.blockDim.x):
        i = s + _MARGIN
        total = arrived(number(previous, i), number(previous, i - 1), number(previous, i - 2), _skip(paths, n, s))
        set_number(following, i, stepped(total, number(emitted, _slot(paths, n, s))))
    if cuda.threadIdx.x == 0:
        for i in range(_MARGIN):
            set_number(following, i, ZERO)
            set_number(following, last + _MARGIN + i, ZERO)
    cuda.syncthreads()


@gpu_function
def _return(behind, emitted, paths, n, alpha, first, last, exponent, omega, shares):
    for s in range(cuda.threadIdx.x, shares.shape[1], cuda.blockDim.x):
        shares[0, s] = shares[1, s] = 0.0
    cuda.syncthreads()
    for s in range(first + cuda.threadIdx.x, last, cuda.blockDim.x):
        i = s + _MARGIN
        total = arrived(number(behind, i), number(behind, i + 1), number(behind, i + 2), _skip(paths, n, s + 2))
        beta = followed(total)
        shares[0, s], shares[1, s] = share(number(alpha, i), beta, exponent)
        set_number(omega, i, multiply(beta, number(emitted, _slot(paths, n, s))))
    if cuda.threadIdx.x == 0:
        for i in range(_MARGIN):
            set_number(omega, first + i, ZERO)
            set_number(omega, last + _MARGIN + i, ZERO)
    cuda.syncthreads()


@gpu_function
def _gammas(paths, n, t, shares, lanes, inverse, chosen):
    """As loop._gammas."""
    first = first_pair(paths.counts[n], paths.frames[n], t)
    for lane in range(cuda.threadIdx.x, LANES, cuda.blockDim.x):
        total = (0.0, 0.0)
        for i in range(first + lane, paths.counts[n] + 1, LANES):
            total = frames.with_pair(total, (shares[0, 2 * i], shares[1, 2 * i]))
        lanes[0, lane], lanes[1, lane] = total
    of_blanks = _folded(lanes)
    for d in range(cuda.threadIdx.x, paths.distinct[n], cuda.blockDim.x):
        gamma = of_blanks if d == 0 else (0.0, 0.0)
        for k in range(paths.starts[n, d], paths.starts[n, d + 1]):
            s = 2 * paths.order[n, k] + 1
            gamma = frames.with_pair(gamma, (shares[0, s], shares[1, s]))
        chosen.gamma[d], chosen.gamma_low[d] = pairs.multiply(gamma, (inverse[0], inverse[1]))
    cuda.syncthreads()


@gpu_function
def _differences(paths, n, is_softmax, emitted, totals, chosen, special):
    """As loop._differences; every thread knows whether a label is not known well enough."""
    inverse, others, noise = (1.0, 0.0), (0.0, 0.0), frames.noise_of(paths.frames[n])
    if is_softmax:
        inverse = pairs.divide((1.0, 0.0), (totals[1], totals[2]))
        others = pairs.multiply((totals[3], totals[4]), inverse)
    if cuda.threadIdx.x == 0:
        special[0], special[1] = -1.0, 0.0
    cuda.syncthreads()
    for d in range(cuda.threadIdx.x, paths.distinct[n], cuda.blockDim.x):
        gamma = chosen.gamma[d], chosen.gamma_low[d]
        (chosen.high[d], chosen.low[d]), p = frames.difference(number(emitted, d), inverse, gamma, noise)
        if frames.is_sure(p, gamma[0]):
            special[0] = d
        elif frames.is_close(chosen.high[d], p, others[0]):
            special[1] = 1.0
    cuda.syncthreads()
    sure = int(special[0])
    if sure >= 0 and cuda.threadIdx.x == 0:
        value = frames.sure_difference(chosen, paths.distinct[n], sure, others, is_softmax, noise)
        chosen.high[sure], chosen.low[sure] = value
        if frames.is_close(value[0], 1.0, others[0]):
            special[1] = 1.0
    cuda.syncthreads()
    close = special[1] != 0.0
    cuda.syncthreads()
    return close


@gpu_function
def _store(gradient, frame, row, factor, labels, distinct, chosen, coefficient):
    """c·p of all classes, then c·(p − γ) of labels."""
    offset = row_offset(gradient, frame)
    for i in range(cuda.threadIdx.x, gradient.classes, cuda.blockDim.x):
        store_pair(gradient.memory, offset + i * gradient.class_stride, scaled((row[i], 0.0), factor))
    cuda.syncthreads()
    for d in range(cuda.threadIdx.x, distinct, cuda.blockDim.x):
        value = scaled((chosen.high[d], chosen.low[d]), coefficient)
        store_pair(gradient.memory, offset + labels[d] * gradient.class_stride, value)
    cuda.syncthreads()


@gpu_function
def _fill(gradient, terms, n, start, end, value):
    for t in range(start, end):
        offset = row_offset(gradient, n * terms.sequence_stride + t * terms.frame_stride)
        for i in range(cuda.threadIdx.x, gradient.classes, cuda.blockDim.x):
            store_pair(gradient.memory, offset + i * gradient.class_stride, (value, 0.0))


@gpu_function
def _begin(row, place, value):
    for i in range(cuda.threadIdx.x, row.high.size, cuda.blockDim.x):
        set_number(row, i, value if i == place else ZERO)
    cuda.syncthreads()


@gpu_function
def _forward(rows, paths, terms, n, space, block):
    """Rows of α; the sum over all alignments, and what the frames' sums multiply it by."""
    states, count, distinct = 2 * paths.counts[n] + 1, paths.frames[n], paths.distinct[n]
    emitted, row = _flat(space.emitted, block), space.row[block]
    norm, undefined = ONE, False
    _begin(_row(space.alphas, block, 0), _MARGIN - 1, ONE)
    for t in range(count):
        frame, totals = n * terms.sequence_stride + t * terms.frame_stride, space.totals[block, t]
        logits = space.chosen[block, 0]
        _first_look(
            rows, frame, paths.labels[n], distinct, terms.is_softmax, row, space.lanes[block], logits, emitted, totals
        )
        cuda.syncthreads()
        for d in range(distinct):
            undefined |= emitted.high[d] != emitted.high[d]
        norm = multiply(norm, from_pair((totals[1], totals[2]))) if terms.is_softmax else norm
        first, last = _first_state(states, count, t), _last_state(states, t)
        previous, following = _row(space.alphas, block, t), _row(space.alphas, block, t + 1)
        _advance(previous, emitted, paths, n, first, last, following)
    total = ONE if states == 1 else ZERO
    if count > 0 and states <= 2 * count + 1:
        alpha = _row(space.alphas, block, count)
        total = add(number(alpha, states + _MARGIN - 1), number(alpha, states + _MARGIN - 2))
    if undefined or norm[0] != norm[0]:
        total = (np.nan, 0.0, 0)
    return total, norm


@gpu_function
def _backward(rows, gradient, paths, terms, n, space, block, inverse):
    states, count, distinct = 2 * paths.counts[n] + 1, paths.frames[n], paths.distinct[n]
    emitted, row, labels = _flat(space.emitted, block), space.row[block], paths.labels[n]
    coefficient = terms.coefficients[n, 0], terms.coefficients[n, 1]
    parts = space.chosen[block]
    chosen = Chosen(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5])
    _begin(_row(space.omegas, block, 0), states + _MARGIN, ONE)
    for back in range(count):
        t = count - 1 - back
        frame, totals = n * terms.sequence_stride + t * terms.frame_stride, space.totals[block, t]
        _load(rows, frame, labels, distinct, row, chosen.logits)
        cuda.syncthreads()
        _emit(chosen.logits, distinct, totals[0], emitted)
        _leave_labels_out(row, labels, distinct)
        behind, omega = _row(space.omegas, block, back % 2), _row(space.omegas, block, (back + 1) % 2)
        alpha, shares = _row(space.alphas, block, t + 1), space.shares[block]
        first, last = _first_state(states, count, t), _last_state(states, t)
        _return(behind, emitted, paths, n, alpha, first, last, inverse[2], omega, shares)
        _gammas(paths, n, t, shares, space.lanes[block], inverse, chosen)
        special = space.lanes[block, 0]
        if _differences(paths, n, terms.is_softmax, emitted, totals, chosen, special):
            of_others = _total_of(row, space.lanes[block], totals[0], True)
            _set_totals(totals, _of_labels(emitted, distinct, space.lanes[block]), of_others)
            _differences(paths, n, terms.is_softmax, emitted, totals, chosen, special)
        factor = pairs.divide(coefficient, (totals[1], totals[2])) if terms.is_softmax else coefficient
        _exponentials(row, totals[0], terms.is_softmax)
        _store(gradient, frame, row, factor, labels, distinct, chosen, coefficient)


@gpu_kernel
def ctc_sequences(rows, gradient, paths, terms, space, nll):
    """As loop.ctc_sequences, of every sequence."""
    block = cuda.blockIdx.x
    for n in range(block, paths.frames.size, cuda.gridDim.x):
        total, norm = _forward(rows, paths, terms, n, space, block)
        impossible = total[0] == 0.0
        if cuda.threadIdx.x == 0:
            if impossible:
                nll[n, 0], nll[n, 1] = 0.0 if terms.zero_infinity else np.inf, 0.0
            else:
                nll[n, 0], nll[n, 1] = logarithm(ratio(norm, total))
        if not terms.with_gradient:
            continue
        if impossible or total[0] != total[0]:
            value = 0.0 if impossible and terms.zero_infinity else np.nan
            _fill(gradient, terms, n, 0, paths.frames[n], value)
        else:
            _backward(rows, gradient, paths, terms, n, space, block, ratio(ONE, total))
        _fill(gradient, terms, n, paths.frames[n], terms.length, 0.0)
        cuda.syncthreads()


def run(task: Task, paths: Paths, terms: Terms, nll: np.ndarray) -> None:
    """The losses of sequences; the gradient is written into the task's buffer."""
    axis = task.logits.ndim - 1
    rows = runtime.rows_on_device(task.logits, axis)
    written = None if task.gradient is None else runtime.Gradient(task.gradient)
    gradient = rows if written is None else runtime.rows_on_device(written.array, axis)
    space = _workspace(task, paths)
    results = runtime.Array(nll.shape, nll.dtype)
    runtime.launch(ctc_sequences, len(space.row.memory), _BLOCK, rows, gradient, paths, terms, space, results)
    results.download(nll)
    if written is not None:
        written.finish()


def _workspace(task: Task, paths: Paths) -> Any:
    count, states, labels = len(paths.frames), 2 * paths.order.shape[1] + 1, paths.labels.shape[1]
    length, size = int(paths.frames.max(initial=0)), states + 2 * _MARGIN
    classes = -(-task.logits.shape[-1] // LANES) * LANES
    blocks = max(1, min(count, _MOST_BYTES // (24 * (length + 1) * size)))

    def numbers(*shape: int) -> Numbers:
        types = (np.float64, np.float64, np.int64)
        return Numbers(*(runtime.Array((blocks, *shape), each) for each in types))  # type: ignore[arg-type]

    def array(*shape: int) -> Any:
        return runtime.Array((blocks, *shape), np.float64)

    return Workspace(
        alphas=numbers(length + 1, size),
        omegas=numbers(2, size),
        emitted=numbers(labels),
        totals=array(length, 5),
        shares=array(2, states),
        chosen=array(6, labels),
        lanes=array(2, LANES),
        row=array(classes),
    )
