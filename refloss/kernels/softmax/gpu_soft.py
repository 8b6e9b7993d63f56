"""Softmax losses with smoothing or with class probabilities on a GPU: a block of threads for each row.

Their sums have terms of any size, so every block has rows of its own in memory to put them into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda, int64

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.block import block_max, block_sum, row_sum, sum_of_pairs
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.gpu.runtime import LARGEST_BLOCK
from refloss.kernels.rows import Rows, row_offset
from refloss.kernels.softmax.loop import (
    Output,
    Terms,
    coefficient_of,
    others_of_label,
    smoothed_likelihood,
    smoothed_masses,
    soft_scalar,
    target_mass,
    target_slope,
)
from refloss.kernels.softmax.refine import (
    accurate_slope,
    accurate_term,
    as_ordered,
    deep_slope,
    difference_of_classes,
    from_ordered,
    is_close,
    is_near,
    wants_pairs,
)
from refloss.kernels.softmax.split import difference, slope_of_split, split_class, undefined_split
from refloss.numerics.exponential import exp_difference
from refloss.numerics.formats import bounds, magnitude_at, ordinal_at, read, store, store_pair, value_of
from refloss.numerics.pairs import add, multiply, negate, pair, rounded, scaled
from refloss.numerics.sums import grid_counts, grid_total

if TYPE_CHECKING:
    from refloss.kernels.softmax.loop import SoftmaxLoop, Task

_BLOCK = 256
# What the lines of all blocks may take together.
_LINES_BYTES = 1 << 28


class Lines(NamedTuple):
    """Rows of float64 [G, C] for each block of the grid."""

    products: np.ndarray
    products_low: np.ndarray
    mass: np.ndarray
    mass_low: np.ndarray
    term: np.ndarray
    term_low: np.ndarray
    deep: np.ndarray


@gpu_function
def _lines_of_block(lines):
    block = cuda.blockIdx.x
    return Lines(
        lines.products[block],
        lines.products_low[block],
        lines.mass[block],
        lines.mass_low[block],
        lines.term[block],
        lines.term_low[block],
        lines.deep[block],
    )


@gpu_function
def split_row(logits, start, k, scratch):
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
def fill(gradient, to, value):
    """One value for a whole row."""
    for c in range(cuda.threadIdx.x, gradient.classes, cuda.blockDim.x):
        store(gradient.memory, to + c * gradient.class_stride, value)


@gpu_function
def all_differences(j, lines, scratch):
    """refine.all_differences, by a block."""
    here, mass_here = (lines.term[j], lines.term_low[j]), (lines.mass[j], lines.mass_low[j])
    largest = np.int64(0)
    for c in range(cuda.threadIdx.x, lines.term.size, cuda.blockDim.x):
        term, mass = (lines.term[c], lines.term_low[c]), (lines.mass[c], lines.mass_low[c])
        left = difference_of_classes(here, mass_here, term, mass)
        lines.products[c], lines.products_low[c] = left[0], left[1]
        largest = max(largest, as_ordered(left[2]))
    largest = block_max(largest, scratch)
    left = sum_of_pairs(lines.products, lines.products_low, scratch)
    return left, from_ordered(largest)


@gpu_function
def _refine_deep(whole, excess, coefficient, gradient, to, logits, start, lines, scratch):
    """refine._refine_deep: of the elements that are left, the first and all that are like it."""
    size = lines.term.size
    while True:
        # The first of them has the largest distance from the end.
        left = np.int64(0)
        for c in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            if lines.deep[c] != 0.0 and size - c > left:
                left = np.int64(size - c)
        left = block_max(left, scratch)
        if left == 0:
            return
        j = size - left
        slope, largest = all_differences(j, lines, scratch)
        slope = deep_slope(slope, largest, (lines.term[j], lines.term_low[j]), whole, excess)
        value = scaled(coefficient, slope)
        logit = read(logits.memory, start + j * logits.class_stride)
        mass, mass_low = lines.mass[j], lines.mass_low[j]
        cuda.syncthreads()
        for c in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            alike = read(logits.memory, start + c * logits.class_stride) == logit
            if lines.deep[c] != 0.0 and alike and lines.mass[c] == mass and lines.mass_low[c] == mass_low:
                lines.deep[c] = 0.0
                store_pair(gradient.memory, to + c * gradient.class_stride, value)
        cuda.syncthreads()


@gpu_function
def _refine(logits, start, gradient, to, split, excess, coefficient, lines, scratch):
    """refine.refine, by a block, from the masses in its lines."""
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        logit = read(logits.memory, start + c * logits.class_stride)
        lines.term[c], lines.term_low[c] = accurate_term(logit, split.maximum)
    whole = sum_of_pairs(lines.term, lines.term_low, scratch)
    total = sum_of_pairs(lines.mass, lines.mass_low, scratch)
    any_deep = np.int64(0)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        term, mass = (lines.term[c], lines.term_low[c]), (lines.mass[c], lines.mass_low[c])
        value, deep = accurate_slope(term, whole, total, excess, mass)
        lines.deep[c] = 1.0 if deep else 0.0
        any_deep = np.int64(1) if deep else any_deep
        store_pair(gradient.memory, to + c * gradient.class_stride, scaled(coefficient, value))
    if block_max(any_deep, scratch) > 0:
        _refine_deep(whole, excess, coefficient, gradient, to, logits, start, lines, scratch)


@gpu_function
def _smoothed_gradient(
    logits, start, gradient, to, label, split, reference, pushed, terms, coefficient, lines, scratch
):
    total, label_mass = smoothed_masses(label, terms)
    others, lost = others_of_label(label, terms)
    excess, factor = add(pushed, negate(total)), multiply(pushed, split.term)
    close, near = np.int64(0), np.int64(0)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        beside = multiply(terms.uniform, pair(terms.weight[c]))
        lines.mass[c], lines.mass_low[c] = label_mass if c == label else beside
        slope = difference(_term(logits, start, c, label, reference), factor, beside)
        close += 1 if is_close(slope[0], beside[0]) else 0
        near += 1 if is_near(slope[0], beside[0]) else 0
        if c == label:
            slope, scale_of_slope = slope_of_split(split, pushed, label_mass, others, excess)
            close += 1 if lost or is_close(slope[0], scale_of_slope) else 0
            near += 1 if is_near(slope[0], scale_of_slope) else 0
        store_pair(gradient.memory, to + c * gradient.class_stride, scaled(coefficient, slope))
    if wants_pairs(block_sum(close, scratch), block_sum(near, scratch), logits.classes, split.total):
        _refine(logits, start, gradient, to, split, excess, coefficient, lines, scratch)


@jit.once
def smoothed_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with class labels and label smoothing."""
    describe = soft_scalar(loop)

    @gpu_kernel
    def rows(logits, gradient, labels, terms, output, lines, with_gradient):
        scratch = cuda.shared.array(LARGEST_BLOCK, int64)
        block_lines = _lines_of_block(lines)
        for index in range(cuda.blockIdx.x, labels.size, cuda.gridDim.x):
            start, to = row_offset(logits, index), row_offset(gradient, index)
            ignored = labels[index] == terms.ignore_index
            label = -1 if ignored else labels[index]
            split, reference = split_row(logits, start, label, scratch)
            loss, pushed = (0.0 if ignored else np.nan, 0.0), (0.0, 0.0)
            if split.defined and not ignored:
                distances = _distance_sum(logits, start, split.maximum, terms.weight, block_lines.products, scratch)
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
def _likelihood(logits, start, split, total, lines, scratch):
    """Σ mass_j·(lse − x_j) for masses with a sum."""
    distances = _distance_sum(logits, start, split.maximum, lines.mass, lines.products, scratch)
    return add(multiply(total, split.log_total), distances)


@gpu_function
def _masses_of_probabilities(logits, start, targets, at, split, top, terms, lines, scratch):
    """The masses of all but a sure class, Q, Σ q_j·(lse − x_j), and that without weights and smoothing; pairs."""
    memory, stride = targets.memory, targets.class_stride
    for c in range(cuda.threadIdx.x, targets.classes, cuda.blockDim.x):
        lines.mass[c], lines.mass_low[c] = read(memory, at + c * stride), 0.0
    plain = (0.0, 0.0)
    if terms.weighted or terms.smooth:
        plain = _likelihood(logits, start, split, row_sum(lines.mass, scratch), lines, scratch)
        cuda.syncthreads()
        for c in range(cuda.threadIdx.x, targets.classes, cuda.blockDim.x):
            mass = target_mass(read(memory, at + c * stride), terms.weight[c], terms)
            lines.mass[c], lines.mass_low[c] = mass
    cuda.syncthreads()
    sure = split.share[0] > 0.5
    own = (lines.mass[top], lines.mass_low[top]) if sure else (0.0, 0.0)
    cuda.syncthreads()
    if sure and cuda.threadIdx.x == 0:
        lines.mass[top] = 0.0
    others = row_sum(lines.mass, scratch)
    total = add(others, own)
    cuda.syncthreads()
    if sure and cuda.threadIdx.x == 0:
        lines.mass[top] = own[0]
    cuda.syncthreads()
    likelihood = _likelihood(logits, start, split, total, lines, scratch)
    return others, total, likelihood, plain if terms.weighted or terms.smooth else likelihood


@gpu_function
def _probability_gradient(
    logits, start, gradient, to, split, top, reference, others, total, pushed, coefficient, lines, scratch
):
    excess, factor = add(pushed, negate(total)), multiply(pushed, split.term)
    close, near = np.int64(0), np.int64(0)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        mass = (lines.mass[c], lines.mass_low[c])
        slope, beside = difference(_term(logits, start, c, top, reference), factor, mass), mass[0]
        # The class that was split off, and any that is its equal: the order of classes must not show.
        if read(logits.memory, start + c * logits.class_stride) == split.maximum:
            slope, beside = slope_of_split(split, pushed, mass, others, excess)
        close += 1 if is_close(slope[0], beside) else 0
        near += 1 if is_near(slope[0], beside) else 0
        store_pair(gradient.memory, to + c * gradient.class_stride, scaled(coefficient, slope))
    if wants_pairs(block_sum(close, scratch), block_sum(near, scratch), logits.classes, split.total):
        _refine(logits, start, gradient, to, split, excess, coefficient, lines, scratch)


@gpu_function
def _target_gradient(logits, start, gradient, to, split, terms, coefficient):
    factor = scaled(coefficient, terms.keep)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        logit = read(logits.memory, start + c * logits.class_stride)
        value = target_slope(factor, terms.weight[c], split, logit)
        store_pair(gradient.memory, to + c * gradient.class_stride, value)


@jit.once
def probability_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with class probabilities."""
    describe = soft_scalar(loop)

    @gpu_kernel
    def rows(logits, gradient, targets, target_gradient, count, terms, output, lines, with_gradient):
        scratch = cuda.shared.array(LARGEST_BLOCK, int64)
        block_lines = _lines_of_block(lines)
        for index in range(cuda.blockIdx.x, count, cuda.gridDim.x):
            start, at = row_offset(logits, index), row_offset(targets, index)
            to, to_target = row_offset(gradient, index), row_offset(target_gradient, index)
            top = _find(logits, start, scratch)
            split, reference = split_row(logits, start, top, scratch)
            loss, nll, others, mass, pushed = (np.nan, 0.0), (np.nan, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
            if split.defined:
                others, mass, likelihood, nll = _masses_of_probabilities(
                    logits, start, targets, at, split, top, terms, block_lines, scratch
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
                where = (logits, start, gradient, to, split, top, reference)
                _probability_gradient(*where, others, mass, pushed, coefficient, block_lines, scratch)
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
