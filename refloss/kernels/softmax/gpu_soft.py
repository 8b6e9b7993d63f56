"""Softmax losses with smoothing or with class probabilities on a GPU: a block of threads for each row.

Their sums have terms of any size, so every block has rows of its own in memory to put them into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda, int64

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.block import block_max, block_sum, row_sum
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.gpu.runtime import LARGEST_BLOCK
from refloss.kernels.rows import Rows, row_offset
from refloss.kernels.softmax.loop import (
    Output,
    Terms,
    coefficient_of,
    smoothed_likelihood,
    smoothed_masses,
    soft_scalar,
    target_mass,
    target_slope,
)
from refloss.kernels.softmax.refine import ACCURATE_CLASSES, accurate_term, is_close, refined, split_term
from refloss.kernels.softmax.split import difference, split_class, undefined_split
from refloss.numerics.exponential import exp_difference
from refloss.numerics.formats import bounds, magnitude_at, ordinal_at, read, store, value_of
from refloss.numerics.pairs import add, multiply, negate, pair, rounded
from refloss.numerics.sums import grid_counts, grid_total

if TYPE_CHECKING:
    from refloss.kernels.softmax.loop import SoftmaxLoop, Task

_BLOCK = 256
# What the lines of all blocks may take together.
_LINES_BYTES = 1 << 28


class Lines(NamedTuple):
    """Rows of float64 [G, C] for each block of the grid."""

    products: np.ndarray
    mass: np.ndarray
    rest: np.ndarray


@gpu_function
def _split_row(logits, start, k, scratch):
    """The split of a row into class k and the rest, known to all threads, as split.split_softmax."""
    memory, stride = logits.memory, logits.class_stride
    lowest, infinity = bounds(memory)
    highest, unsound = lowest, np.int64(0)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        here = ordinal_at(memory, start + c * stride)
        if c != k and here > highest:
            highest = here
        if here >= infinity or magnitude_at(memory, start + c * stride) > infinity:
            unsound = np.int64(1)
    sound = block_max(unsound, scratch) == 0
    reference = value_of(block_max(highest, scratch), memory) if sound else -np.inf
    logit = read(memory, start + k * stride) if k >= 0 else -np.inf
    coarse, fine = np.int64(0), np.int64(0)
    if reference > -np.inf:
        for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
            if c != k:
                counts = grid_counts(exp_difference(read(memory, start + c * stride), reference))
                coarse += counts[0]
                fine += counts[1]
    coarse, fine = block_sum(coarse, scratch), block_sum(fine, scratch)
    if not sound or (reference == -np.inf and logit == -np.inf):
        return undefined_split(sound, -np.inf), 0.0
    others = grid_total(coarse, fine, 0) if reference > -np.inf else (0.0, 0.0)
    return split_class(logit, reference, others), reference


@gpu_function
def _term(logits, start, c, k, reference):
    """The exponential of class c, 0 for class k."""
    if c == k or reference == -np.inf:
        return 0.0
    return exp_difference(read(logits.memory, start + c * logits.class_stride), reference)


@gpu_function
def _find(logits, start, scratch):
    """The first class with the largest logit, or −1."""
    memory, stride = logits.memory, logits.class_stride
    lowest, _ = bounds(memory)
    highest = lowest
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        here = ordinal_at(memory, start + c * stride)
        highest = here if here > highest else highest
    largest = value_of(block_max(highest, scratch), memory)
    # The first of them has the largest distance from the end.
    left = np.int64(-1)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        if read(memory, start + c * stride) == largest and logits.classes - c > left:
            left = np.int64(logits.classes - c)
    left = block_max(left, scratch)
    return logits.classes - left if left > 0 else -1


@gpu_function
def _distance_sum(logits, start, maximum, weight, products, scratch):
    """Σ weight_j·(maximum − x_j), a pair."""
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        products[c] = weight[c] * (maximum - read(logits.memory, start + c * logits.class_stride))
    return row_sum(products, scratch)


@gpu_function
def _accurate_total(logits, start, split, lines, scratch):
    """Σ e^(x_j − maximum), a pair, as kernels.softmax.refine knows it."""
    if logits.classes > ACCURATE_CLASSES:
        return split.total
    high, rest, low = lines
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        term = accurate_term(read(logits.memory, start + c * logits.class_stride), split.maximum)
        parts = split_term(term[0])
        high[c], rest[c], low[c] = parts[0], parts[1], term[1]
    return add(row_sum(high, scratch), add(row_sum(rest, scratch), row_sum(low, scratch)))


@gpu_function
def fill(gradient, to, value):
    """One value for a whole row."""
    for c in range(cuda.threadIdx.x, gradient.classes, cuda.blockDim.x):
        store(gradient.memory, to + c * gradient.class_stride, value)


@gpu_function
def _smoothed_gradient(
    logits, start, gradient, to, label, split, reference, pushed, terms, coefficient, lines, scratch
):
    label_mass = smoothed_masses(label, terms)[1]
    slope = add(multiply(pushed, split.share), negate(label_mass))
    factor, amount = multiply(coefficient, multiply(pushed, split.term)), multiply(coefficient, terms.uniform)
    close = np.int64(1) if is_close(slope[0], label_mass[0]) else np.int64(0)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        subtracted = multiply(amount, pair(terms.weight[c]))
        value = difference(_term(logits, start, c, label, reference), factor, subtracted)
        if is_close(value, subtracted[0]):
            close = np.int64(1)
        value = rounded(multiply(coefficient, slope)) if c == label else value
        store(gradient.memory, to + c * gradient.class_stride, value)
    if block_max(close, scratch) == 0:
        return
    whole = _accurate_total(logits, start, split, lines, scratch)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        mass = label_mass if c == label else multiply(terms.uniform, pair(terms.weight[c]))
        logit = read(logits.memory, start + c * logits.class_stride)
        wanted, value = refined(logit, split.maximum, whole, pushed, coefficient, mass)
        if wanted:
            store(gradient.memory, to + c * gradient.class_stride, value)


@jit.once
def smoothed_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with class labels and label smoothing."""
    describe = soft_scalar(loop)

    @gpu_kernel
    def rows(logits, gradient, labels, terms, output, lines, with_gradient):
        scratch = cuda.shared.array(LARGEST_BLOCK, int64)
        block_lines = (lines.products[cuda.blockIdx.x], lines.mass[cuda.blockIdx.x], lines.rest[cuda.blockIdx.x])
        for index in range(cuda.blockIdx.x, labels.size, cuda.gridDim.x):
            start, to = row_offset(logits, index), row_offset(gradient, index)
            ignored = labels[index] == terms.ignore_index
            label = -1 if ignored else labels[index]
            split, reference = _split_row(logits, start, label, scratch)
            loss, pushed = (0.0 if ignored else np.nan, 0.0), (0.0, 0.0)
            if split.defined and not ignored:
                distances = _distance_sum(logits, start, split.maximum, terms.weight, block_lines[0], scratch)
                likelihood = smoothed_likelihood(split, label, terms, distances)
                loss, pushed = describe(split, smoothed_masses(label, terms)[0], likelihood, terms.parameters)
            if cuda.threadIdx.x == 0:
                output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
                output.nll[index] = 0.0 if ignored else rounded(split.nll)
                output.loss[index] = rounded(loss)
            if with_gradient:
                if ignored or not split.defined:
                    fill(gradient, to, 0.0 if ignored else np.nan)
                else:
                    coefficient = coefficient_of(terms, index)
                    _smoothed_gradient(
                        logits,
                        start,
                        gradient,
                        to,
                        label,
                        split,
                        reference,
                        pushed,
                        terms,
                        coefficient,
                        block_lines,
                        scratch,
                    )
            cuda.syncthreads()

    return rows


@gpu_function
def _masses_of_probabilities(logits, start, targets, at, split, terms, lines, scratch):
    """Q, Σ q_j·(lse − x_j), and the latter without weights and smoothing; pairs."""
    products, mass = lines[0], lines[1]
    memory, stride = targets.memory, targets.class_stride
    for c in range(cuda.threadIdx.x, targets.classes, cuda.blockDim.x):
        mass[c] = read(memory, at + c * stride)
    total = row_sum(mass, scratch)
    distances = _distance_sum(logits, start, split.maximum, mass, products, scratch)
    plain = add(multiply(total, split.log_total), distances)
    if not (terms.weighted or terms.smooth):
        return total, plain, plain
    cuda.syncthreads()
    for c in range(cuda.threadIdx.x, targets.classes, cuda.blockDim.x):
        mass[c] = read(memory, at + c * stride) * terms.weight[c]
    total = add(multiply(terms.keep, row_sum(mass, scratch)), multiply(terms.uniform, terms.weight_total))
    cuda.syncthreads()
    for c in range(cuda.threadIdx.x, targets.classes, cuda.blockDim.x):
        mass[c] = rounded(target_mass(read(memory, at + c * stride), terms.weight[c], terms))
    distances = _distance_sum(logits, start, split.maximum, mass, products, scratch)
    return total, add(multiply(total, split.log_total), distances), plain


@gpu_function
def _probability_gradient(
    logits, start, targets, at, gradient, to, split, top, reference, pushed, terms, coefficient, lines, scratch
):
    factor, close = multiply(coefficient, multiply(pushed, split.term)), np.int64(0)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        mass = target_mass(read(targets.memory, at + c * targets.class_stride), terms.weight[c], terms)
        subtracted = multiply(coefficient, mass)
        value = difference(_term(logits, start, c, top, reference), factor, subtracted)
        near = is_close(value, subtracted[0])
        # The class that was split off, and any that is its equal: the order of classes must not show.
        if read(logits.memory, start + c * logits.class_stride) == split.maximum:
            slope = add(multiply(pushed, split.share), negate(mass))
            near = near or is_close(slope[0], mass[0])
            value = rounded(multiply(coefficient, slope))
        close = np.int64(1) if near else close
        store(gradient.memory, to + c * gradient.class_stride, value)
    if block_max(close, scratch) == 0:
        return
    whole = _accurate_total(logits, start, split, lines, scratch)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        mass = target_mass(read(targets.memory, at + c * targets.class_stride), terms.weight[c], terms)
        logit = read(logits.memory, start + c * logits.class_stride)
        wanted, value = refined(logit, split.maximum, whole, pushed, coefficient, mass)
        if wanted:
            store(gradient.memory, to + c * gradient.class_stride, value)


@gpu_function
def _target_gradient(logits, start, gradient, to, split, terms, coefficient):
    factor, log_total = rounded(multiply(coefficient, terms.keep)), rounded(split.log_total)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        below = split.maximum - read(logits.memory, start + c * logits.class_stride)
        value = target_slope(factor, terms.weight[c], log_total, below)
        store(gradient.memory, to + c * gradient.class_stride, value)


@jit.once
def probability_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with class probabilities."""
    describe = soft_scalar(loop)

    @gpu_kernel
    def rows(logits, gradient, targets, target_gradient, count, terms, output, lines, with_gradient):
        scratch = cuda.shared.array(LARGEST_BLOCK, int64)
        block_lines = (lines.products[cuda.blockIdx.x], lines.mass[cuda.blockIdx.x], lines.rest[cuda.blockIdx.x])
        for index in range(cuda.blockIdx.x, count, cuda.gridDim.x):
            start, at = row_offset(logits, index), row_offset(targets, index)
            to, to_target = row_offset(gradient, index), row_offset(target_gradient, index)
            top = _find(logits, start, scratch)
            split, reference = _split_row(logits, start, top, scratch)
            loss, nll, pushed = (np.nan, 0.0), (np.nan, 0.0), (np.nan, 0.0)
            if split.defined:
                mass, likelihood, nll = _masses_of_probabilities(
                    logits, start, targets, at, split, terms, block_lines, scratch
                )
                loss, pushed = describe(split, mass, likelihood, terms.parameters)
            if cuda.threadIdx.x == 0:
                output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
                output.nll[index] = rounded(nll)
                output.loss[index] = rounded(loss)
            if with_gradient and not split.defined:
                fill(gradient, to, np.nan)
                fill(target_gradient, to_target, np.nan)
            elif with_gradient:
                coefficient = coefficient_of(terms, index)
                where = (logits, start, targets, at, gradient, to, split, top, reference)
                _probability_gradient(*where, pushed, terms, coefficient, block_lines, scratch)
                _target_gradient(logits, start, target_gradient, to_target, split, terms, coefficient)
            cuda.syncthreads()

    return rows


def run(task: Task, terms: Terms, logits: Rows, gradient: Rows, output: Output, count: int) -> None:
    """Run a task whose terms are smooth or whose target are probabilities."""
    classes = logits.classes
    blocks = max(1, min(count, 2 * runtime.processors(), _LINES_BYTES // (8 * len(Lines._fields) * max(1, classes))))
    arrays: Any = [runtime.Array((blocks, classes), np.float64) for _ in Lines._fields]
    lines = Lines(*arrays)
    threads = min(_BLOCK, -(-max(1, classes) // 32) * 32)
    blocks = min(blocks, count)
    with_gradient = task.gradient is not None
    if task.has_labels:
        arguments = (logits, gradient, task.target, terms, output, lines, with_gradient)
        runtime.launch(smoothed_rows(task.loop), blocks, threads, *arguments)
        return
    targets = runtime.rows_on_device(task.target, task.class_axis)
    written = None if task.target_gradient is None else runtime.Gradient(task.target_gradient)
    target_gradient = targets if written is None else runtime.rows_on_device(written.array, task.class_axis)
    of_targets = (targets, target_gradient, count, terms, output, lines, with_gradient)
    runtime.launch(probability_rows(task.loop), blocks, threads, logits, gradient, *of_targets)
    if written is not None:
        written.finish()
