"""Rows whose logits go through a chain on a GPU: kernels.logits.loop, by a block of threads for each row.

Every block has lines of its own for what the CPU holds in lines; sums are of integers, so the bits are the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda, int64

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.block import block_max, block_sums, long_sum, sum_of_pairs
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.gpu.runtime import LARGEST_BLOCK
from refloss.kernels.logits.chain import chained as through
from refloss.kernels.logits.loop import (
    GRADIENT,
    LOG_PROBABILITIES,
    ChainTerms,
    Output,
    is_deep,
    push_of_row,
    summed_difference,
    yield_row,
    yield_undefined,
)
from refloss.kernels.logits.row import (
    Masses,
    counts_of,
    difference_of_class,
    distance_term,
    gradient_of_difference,
    grid_of,
    label_masses,
    mass_of_label,
    nll_of,
    significand_of,
    softmax_of_sums,
    undefined_softmax,
)
from refloss.kernels.rows import row_offset
from refloss.kernels.softmax.gpu_soft import all_differences, fill
from refloss.kernels.softmax.loop import LOST, coefficient_of, target_mass
from refloss.numerics.exponential import scale
from refloss.numerics.formats import bounds, magnitude_at, ordinal_at, read, store, store_pair, value_of
from refloss.numerics.pairs import add, multiply, pair, rounded, scaled

if TYPE_CHECKING:
    from refloss.kernels.softmax.loop import Task, Terms

_BLOCK = 256
# What the lines of all blocks may take together.
_LINES_BYTES = 1 << 28


class Lines(NamedTuple):
    """Rows of float64 [G, C] for each block of the grid: those of loop.Lines, and which classes are deep."""

    high: np.ndarray
    low: np.ndarray
    slope: np.ndarray
    slope_low: np.ndarray
    term: np.ndarray
    term_low: np.ndarray
    mass: np.ndarray
    mass_low: np.ndarray
    products: np.ndarray
    products_low: np.ndarray
    deep: np.ndarray


@gpu_function
def _lines_of_block(lines):
    block = cuda.blockIdx.x
    return Lines(
        lines.high[block],
        lines.low[block],
        lines.slope[block],
        lines.slope_low[block],
        lines.term[block],
        lines.term_low[block],
        lines.mass[block],
        lines.mass_low[block],
        lines.products[block],
        lines.products_low[block],
        lines.deep[block],
    )


@gpu_function
def _chain(logits, start, chain, lines):
    """loop._chain."""
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        value, slope = through(pair(read(logits.memory, start + c * logits.class_stride)), chain)
        lines.high[c], lines.low[c] = value
        lines.slope[c], lines.slope_low[c] = slope
    cuda.syncthreads()


@gpu_function
def _highest(line, excluded, scratch):
    """The largest number of a line but for one class."""
    highest, _ = bounds(line)
    for c in range(cuda.threadIdx.x, line.size, cuda.blockDim.x):
        here = ordinal_at(line, c)
        highest = here if here > highest and c != excluded else highest
    return value_of(block_max(highest, scratch), line)


@gpu_function
def _top(lines, largest, scratch):
    """row._find_top."""
    lowest, _ = bounds(lines.low)
    highest = lowest
    for c in range(cuda.threadIdx.x, lines.high.size, cuda.blockDim.x):
        here = ordinal_at(lines.low, c)
        highest = here if here > highest and lines.high[c] == largest else highest
    largest_low = value_of(block_max(highest, scratch), lines.low)
    # The first of them has the largest distance from the end.
    left = np.int64(0)
    for c in range(cuda.threadIdx.x, lines.high.size, cuda.blockDim.x):
        if lines.high[c] == largest and lines.low[c] == largest_low and lines.high.size - c > left:
            left = np.int64(lines.high.size - c)
    return lines.high.size - block_max(left, scratch)


@gpu_function
def _softmax(lines, scratch):
    """row.softmax_of, known to all threads."""
    _, infinity = bounds(lines.high)
    unsound = np.int64(0)
    for c in range(cuda.threadIdx.x, lines.high.size, cuda.blockDim.x):
        if ordinal_at(lines.high, c) >= infinity or magnitude_at(lines.high, c) > infinity:
            unsound = np.int64(1)
    sound = block_max(unsound, scratch) == 0
    largest = _highest(lines.high, -1, scratch) if sound else -np.inf
    if largest == -np.inf:
        return undefined_softmax(sound)
    top = _top(lines, largest, scratch)
    maximum = (lines.high[top], lines.low[top])
    exponent = grid_of(_highest(lines.high, top, scratch), maximum[0])
    coarse, fine, finest = np.int64(0), np.int64(0), np.int64(0)
    for c in range(cuda.threadIdx.x, lines.high.size, cuda.blockDim.x):
        value, n = significand_of((lines.high[c], lines.low[c]), maximum)
        lines.term[c], lines.term_low[c] = scale(value[0], n), scale(value[1], n)
        if c == top:
            lines.term[c], lines.term_low[c] = 1.0, 0.0
        else:
            counts = counts_of(value, n, exponent)
            coarse += counts[0]
            fine += counts[1]
            finest += counts[2]
    coarse, fine, finest = block_sums(coarse, fine, finest, scratch)
    return softmax_of_sums(top, maximum, coarse, fine, finest, exponent)


@gpu_function
def _sum_of_products(lines, scratch):
    return sum_of_pairs(lines.products, lines.products_low, scratch)


@gpu_function
def _weights_but_top(softmax, terms, lines, scratch):
    """row.weights_but_top."""
    weight = terms.weight[softmax.top]
    others = add(terms.weight_total, pair(-weight))
    if abs(others[0]) < LOST * abs(weight):
        cuda.syncthreads()
        for c in range(cuda.threadIdx.x, lines.products.size, cuda.blockDim.x):
            lines.products[c] = 0.0 if c == softmax.top else terms.weight[c]
        others = long_sum(lines.products, scratch)
    return others


@gpu_function
def _masses_of_label(softmax, label, lines, terms, scratch):
    """loop._masses_of_label."""
    distances, others = pair(0.0), pair(0.0)
    if terms.smooth:
        for c in range(cuda.threadIdx.x, lines.high.size, cuda.blockDim.x):
            product = distance_term(pair(terms.weight[c]), (lines.high[c], lines.low[c]), softmax.maximum)
            lines.products[c], lines.products_low[c] = product
        distances = _sum_of_products(lines, scratch)
        others = _weights_but_top(softmax, terms, lines, scratch)
    for c in range(cuda.threadIdx.x, lines.high.size, cuda.blockDim.x):
        lines.mass[c], lines.mass_low[c] = mass_of_label(c, label, terms)
    cuda.syncthreads()
    return label_masses(softmax, label, (lines.high[label], lines.low[label]), distances, others, terms)


@gpu_function
def _mass_sum(lines, scratch):
    return sum_of_pairs(lines.mass, lines.mass_low, scratch)


@gpu_function
def _likelihood(softmax, total, lines, scratch):
    """loop._likelihood."""
    for c in range(cuda.threadIdx.x, lines.mass.size, cuda.blockDim.x):
        mass = (lines.mass[c], lines.mass_low[c])
        product = distance_term(mass, (lines.high[c], lines.low[c]), softmax.maximum)
        lines.products[c], lines.products_low[c] = product
    distances = _sum_of_products(lines, scratch)
    return add(multiply(total, softmax.log_total), distances)


@gpu_function
def _masses_of_probabilities(softmax, targets, at, lines, terms, scratch):
    """loop._masses_of_probabilities."""
    memory, stride = targets.memory, targets.class_stride
    for c in range(cuda.threadIdx.x, targets.classes, cuda.blockDim.x):
        lines.mass[c], lines.mass_low[c] = read(memory, at + c * stride), 0.0
    plain = pair(0.0)
    if terms.weighted or terms.smooth:
        plain = _likelihood(softmax, _mass_sum(lines, scratch), lines, scratch)
        for c in range(cuda.threadIdx.x, targets.classes, cuda.blockDim.x):
            lines.mass[c], lines.mass_low[c] = target_mass(read(memory, at + c * stride), terms.weight[c], terms)
    cuda.syncthreads()
    top = softmax.top
    own = (lines.mass[top], lines.mass_low[top])
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        lines.mass[top], lines.mass_low[top] = 0.0, 0.0
    others = _mass_sum(lines, scratch)
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        lines.mass[top], lines.mass_low[top] = own
    cuda.syncthreads()
    total = add(others, own)
    likelihood = _likelihood(softmax, total, lines, scratch)
    return Masses(total, others, likelihood, plain if terms.weighted or terms.smooth else likelihood)


@gpu_function
def _gradients(softmax, masses, push, gradient, to, lines, scratch):
    """loop._gradients and loop._deep_gradients."""
    any_deep = np.int64(0)
    for c in range(cuda.threadIdx.x, lines.high.size, cuda.blockDim.x):
        term, mass = (lines.term[c], lines.term_low[c]), (lines.mass[c], lines.mass_low[c])
        difference, size = difference_of_class(softmax, masses, c == softmax.top, term, mass)
        deep = is_deep(difference, size)
        lines.deep[c] = 1.0 if deep else 0.0
        any_deep = np.int64(1) if deep else any_deep
        value = gradient_of_difference(softmax, push, difference, term, (lines.slope[c], lines.slope_low[c]))
        store_pair(gradient.memory, to + c * gradient.class_stride, value)
    if block_max(any_deep, scratch) > 0:
        _deep_gradients(softmax, push, gradient, to, lines, scratch)


@gpu_function
def _deep_gradients(softmax, push, gradient, to, lines, scratch):
    """Of the elements that are left, the first and all that are like it."""
    size = lines.high.size
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
        total, largest = all_differences(j, lines, scratch)
        difference = summed_difference(total, largest)
        term, slope = (lines.term[j], lines.term_low[j]), (lines.slope[j], lines.slope_low[j])
        value = gradient_of_difference(softmax, push, difference, term, slope)
        cuda.syncthreads()
        for c in range(cuda.threadIdx.x, size, cuda.blockDim.x):
            alike = lines.high[c] == lines.high[j] and lines.low[c] == lines.low[j]
            alike = alike and lines.mass[c] == lines.mass[j] and lines.mass_low[c] == lines.mass_low[j]
            if lines.deep[c] != 0.0 and alike:
                lines.deep[c] = 0.0
                store_pair(gradient.memory, to + c * gradient.class_stride, value)
        cuda.syncthreads()


@gpu_function
def _target_gradients(softmax, index, gradient, to, lines, terms):
    """loop._target_gradients."""
    factor = scaled(coefficient_of(terms, index), terms.keep)
    for c in range(cuda.threadIdx.x, gradient.classes, cuda.blockDim.x):
        nll = nll_of(softmax, (lines.high[c], lines.low[c]))
        value = scaled(scaled(factor, pair(terms.weight[c])), nll)
        store_pair(gradient.memory, to + c * gradient.class_stride, value)


@gpu_function
def _log_probabilities(softmax, result, to, lines):
    """loop._log_probabilities."""
    for c in range(cuda.threadIdx.x, result.classes, cuda.blockDim.x):
        value = 0.0 - rounded(nll_of(softmax, (lines.high[c], lines.low[c])))
        store(result.memory, to + c * result.class_stride, value)


@gpu_kernel
def _chained_rows(arrays, labels, count, terms, chained, output, lines, has_labels, wanted):
    """loop.chained_rows."""
    scratch = cuda.shared.array(LARGEST_BLOCK, int64)
    logits, gradient, targets, target_gradient = arrays
    line = _lines_of_block(lines)
    for index in range(cuda.blockIdx.x, count, cuda.gridDim.x):
        to, to_target = row_offset(gradient, index), row_offset(target_gradient, index)
        label = labels[index] if has_labels else -1
        ignored = has_labels and label == terms.ignore_index
        _chain(logits, row_offset(logits, index), chained.chain, line)
        softmax = _softmax(line, scratch)
        if ignored or not softmax.defined:
            if cuda.threadIdx.x == 0:
                yield_undefined(output, index, softmax, ignored, chained.z_loss)
            if wanted != 0:
                fill(gradient, to, 0.0 if ignored else np.nan)
            if wanted == GRADIENT and not has_labels:
                fill(target_gradient, to_target, np.nan)
        elif wanted == LOG_PROBABILITIES:
            _log_probabilities(softmax, gradient, to, line)
        else:
            if label >= 0:
                masses = _masses_of_label(softmax, label, line, terms, scratch)
            else:
                at = row_offset(targets, index)
                masses = _masses_of_probabilities(softmax, targets, at, line, terms, scratch)
            if cuda.threadIdx.x == 0:
                yield_row(output, index, softmax, masses, chained.z_loss)
            if wanted == GRADIENT:
                push = push_of_row(softmax, index, terms, chained)
                _gradients(softmax, masses, push, gradient, to, line, scratch)
            if wanted == GRADIENT and not has_labels:
                _target_gradients(softmax, index, target_gradient, to_target, line, terms)
        cuda.syncthreads()


def run(task: Task, terms: Terms, chained: ChainTerms, output: Output, count: int, wanted: int) -> None:
    """Run a task's rows; gradients are written into the task's buffers."""
    logits = runtime.rows_on_device(task.logits, task.class_axis)
    written = None if task.gradient is None else runtime.Gradient(task.gradient)
    gradient = logits if written is None else runtime.rows_on_device(written.array, task.class_axis)
    targets, target_gradient, of_target = logits, logits, None
    if not task.has_labels:
        targets = target_gradient = runtime.rows_on_device(task.target, task.class_axis)
        of_target = None if task.target_gradient is None else runtime.Gradient(task.target_gradient)
    if of_target is not None:
        target_gradient = runtime.rows_on_device(of_target.array, task.class_axis)
    labels = task.target if task.has_labels else np.zeros(0, np.int64)
    classes = logits.classes
    room = _LINES_BYTES // (8 * len(Lines._fields) * max(1, classes))
    blocks = min(count, max(1, min(2 * runtime.processors(), room)))
    lines: Any = [runtime.Array((max(1, blocks), classes), np.float64) for _ in Lines._fields]
    results: Any = [runtime.Array(values.shape, values.dtype) for values in output]
    arrays = (logits, gradient, targets, target_gradient)
    threads = min(_BLOCK, -(-max(1, classes) // 32) * 32)
    of_rows = (terms, chained, Output(*results), Lines(*lines), task.has_labels, wanted)
    runtime.launch(_chained_rows, blocks, threads, arrays, labels, count, *of_rows)
    for result, values in zip(results, output, strict=True):
        result.download(values)
    for buffer in (written, of_target):
        if buffer is not None:
            buffer.finish()
