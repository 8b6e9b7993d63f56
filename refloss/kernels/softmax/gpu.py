"""Softmax losses on a GPU: the rows of kernels.softmax.loop, a block of threads for each, or a thread for a short one.

A row is read three times: its largest logits, the sum of its exponentials, its gradient. Only so many rows are at work
at a time that the second and third reading find them in the L2 cache. What comes once a row is one thread's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda, float64, int64

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.block import block_max, block_sum
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.gpu.runtime import LARGEST_BLOCK
from refloss.kernels.rows import Rows, row_offset
from refloss.kernels.softmax import gpu_soft
from refloss.kernels.softmax.columns import MAX_CLASSES
from refloss.kernels.softmax.loop import Output, coefficient_of
from refloss.kernels.softmax.split import split_class, undefined_split
from refloss.numerics.exponential import exp_difference
from refloss.numerics.formats import before_storing, bounds, magnitude_at, ordinal_at, read, store, value_of
from refloss.numerics.pairs import add, negate, pair, rounded, scaled, times
from refloss.numerics.sums import grid_counts, grid_total

if TYPE_CHECKING:
    from refloss.kernels.softmax.loop import SoftmaxLoop, Task, Terms

# Above every ordinal: a row with NaN or +inf.
_UNSOUND = 2**63 - 1
_SHORT_BLOCK = 128
# A block's registers have to fit a processor: so many threads may have all that a thread can have.
LARGE_BLOCK = 256
# Threads that a processor has at work, if it has registers for them.
_THREADS = 1024
# Blocks that a processor is given even where their rows leave the cache.
_LEAST_BLOCKS = 2
# Elements that a thread of a block should at least have to work on.
_ELEMENTS = 16


@gpu_function
def _split(logit, highest, logits, coarse, fine):
    """The split of a row from the ordinal of its largest other logit and the sums of their exponentials."""
    _, infinity = bounds(logits.memory)
    sound = highest < infinity
    reference = value_of(highest, logits.memory) if sound else -np.inf
    if not sound or (reference == -np.inf and logit == -np.inf):
        return undefined_split(sound, -np.inf)
    return split_class(logit, reference, grid_total(coarse, fine, 0) if reference > -np.inf else (0.0, 0.0))


def _finisher(loop: SoftmaxLoop) -> Any:
    """What a row yields; the factor of its exponentials, and the gradients where one is 1 and at its label."""
    describe = loop.label

    @gpu_function
    def finish(split, label, ignored, index, terms, output, memory):
        output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
        output.nll[index] = 0.0 if ignored else rounded(split.nll)
        if ignored:
            output.loss[index] = 0.0
            return (0.0, 0.0), 0.0, 0.0
        if not split.defined:
            output.loss[index] = np.nan
            return (np.nan, np.nan), np.nan, np.nan
        loss, pushed, pulled = describe(split, pair(terms.weight[label]), terms.parameters)
        output.loss[index] = rounded(loss)
        coefficient = coefficient_of(terms, index)
        factor, at_label = scaled(coefficient, scaled(pushed, split.term)), negate(scaled(coefficient, pulled))
        return factor, before_storing(memory, factor), before_storing(memory, at_label)

    return finish


@gpu_function
def _largest(logits, start, label, scratch):
    """The ordinal of the largest logit but the label's, or _UNSOUND; of the block."""
    memory, stride = logits.memory, logits.class_stride
    lowest, infinity = bounds(memory)
    highest = lowest
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        here = ordinal_at(memory, start + c * stride)
        if c != label and here > highest:
            highest = here
        if magnitude_at(memory, start + c * stride) > infinity or here >= infinity:
            highest = _UNSOUND
    return block_max(highest, scratch)


@gpu_function
def _sums(logits, start, label, reference, scratch):
    """The sums of the others' exponentials on the grids; of the block."""
    memory, stride = logits.memory, logits.class_stride
    coarse, fine = np.int64(0), np.int64(0)
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        if c != label:
            counts = grid_counts(exp_difference(read(memory, start + c * stride), reference))
            coarse += counts[0]
            fine += counts[1]
    return block_sum(coarse, scratch), block_sum(fine, scratch)


@gpu_function
def _write(logits, start, gradient, to, label, reference, factor, at_one, at_label):
    """The gradient: the exponentials times a factor, and the label's."""
    for c in range(cuda.threadIdx.x, logits.classes, cuda.blockDim.x):
        term = exp_difference(read(logits.memory, start + c * logits.class_stride), reference)
        value = at_one if term == 1.0 else times(term, factor)
        store(gradient.memory, to + c * gradient.class_stride, at_label if c == label else value)


@jit.once
def block_rows(loop: SoftmaxLoop) -> Any:
    """The kernel for rows of any length: a block for each row."""
    finish = _finisher(loop)

    @gpu_kernel
    def label_rows(logits, gradient, labels, terms, output, with_gradient):
        scratch = cuda.shared.array(LARGEST_BLOCK, int64)
        shared = cuda.shared.array(4, float64)
        for index in range(cuda.blockIdx.x, labels.size, cuda.gridDim.x):
            start = row_offset(logits, index)
            ignored = labels[index] == terms.ignore_index
            label = -1 if ignored else labels[index]
            highest = _largest(logits, start, label, scratch)
            lowest, infinity = bounds(logits.memory)
            reference = value_of(highest, logits.memory) if lowest < highest < infinity else 0.0
            coarse, fine = _sums(logits, start, label, reference, scratch)
            if cuda.threadIdx.x == 0:
                logit = read(logits.memory, start + label * logits.class_stride) if label >= 0 else -np.inf
                split = _split(logit, highest, logits, coarse, fine)
                factor, at_one, at_label = finish(split, label, ignored, index, terms, output, gradient.memory)
                shared[0], shared[1], shared[2], shared[3] = factor[0], factor[1], at_one, at_label
            cuda.syncthreads()
            if with_gradient:
                factor, to = (shared[0], shared[1]), row_offset(gradient, index)
                if ignored or factor[0] != factor[0]:
                    gpu_soft.fill(gradient, to, shared[3])
                else:
                    _write(logits, start, gradient, to, label, reference, factor, shared[2], shared[3])
            cuda.syncthreads()

    return label_rows


@jit.once
def short_rows(loop: SoftmaxLoop) -> Any:
    """A thread for each row: neighbouring threads read neighbouring rows, whose classes are few."""
    finish = _finisher(loop)

    @gpu_kernel
    def label_rows(logits, gradient, labels, terms, output, with_gradient):
        memory, stride = logits.memory, logits.class_stride
        lowest, infinity = bounds(memory)
        for index in range(cuda.grid(1), labels.size, cuda.gridsize(1)):
            start, to = row_offset(logits, index), row_offset(gradient, index)
            ignored = labels[index] == terms.ignore_index
            label = -1 if ignored else labels[index]
            highest = lowest
            for c in range(logits.classes):
                here = ordinal_at(memory, start + c * stride)
                if c != label and here > highest:
                    highest = here
                if magnitude_at(memory, start + c * stride) > infinity or here >= infinity:
                    highest = _UNSOUND
            reference = value_of(highest, memory) if lowest < highest < infinity else 0.0
            coarse, fine = np.int64(0), np.int64(0)
            for c in range(logits.classes):
                if c != label:
                    counts = grid_counts(exp_difference(read(memory, start + c * stride), reference))
                    coarse += counts[0]
                    fine += counts[1]
            logit = read(memory, start + label * stride) if label >= 0 else -np.inf
            split = _split(logit, highest, logits, coarse, fine)
            factor, at_one, at_label = finish(split, label, ignored, index, terms, output, gradient.memory)
            if with_gradient:
                for c in range(logits.classes):
                    term = exp_difference(read(memory, start + c * stride), reference)
                    value = at_one if term == 1.0 else times(term, factor)
                    value = at_label if c == label or ignored or factor[0] != factor[0] else value
                    store(gradient.memory, to + c * gradient.class_stride, value)

    return label_rows


def run(task: Task, terms: Terms, output: Output, count: int) -> None:
    """Run a task's rows; gradients are written into the task's buffers."""
    logits = runtime.rows_on_device(task.logits, task.class_axis)
    written = None if task.gradient is None else runtime.Gradient(task.gradient)
    gradient = logits if written is None else runtime.rows_on_device(written.array, task.class_axis)
    arrays: Any = [runtime.Array(values.shape, values.dtype) for values in output]
    results = Output(*arrays)
    if task.has_labels and not terms.smooth:
        kernel, blocks, threads = _plan(task.loop, logits, count)
        runtime.launch(kernel, blocks, threads, logits, gradient, task.target, terms, results, written is not None)
    else:
        gpu_soft.run(task, terms, logits, gradient, results, count)
    for result, values in zip(arrays, output, strict=True):
        result.download(values)
    if written is not None:
        written.finish()


def _plan(loop: SoftmaxLoop, logits: Rows, count: int) -> tuple[Any, int, int]:
    """The kernel for some rows, and how many blocks of how many threads."""
    if logits.classes <= MAX_CLASSES:
        return short_rows(loop), runtime.grid(count, _SHORT_BLOCK), _SHORT_BLOCK
    threads = min(LARGE_BLOCK, max(32, -(-logits.classes // _ELEMENTS) * 32))
    return block_rows(loop), blocks_at_work(logits, threads, count), threads


def blocks_at_work(logits: Rows, threads: int, count: int) -> int:
    """As many blocks as the processors hold, unless their rows would leave the cache before they are read again."""
    row = logits.classes * logits.memory.itemsize
    resident = runtime.processors() * max(1, _THREADS // threads)
    in_cache = runtime.cache_bytes() // (2 * max(1, row))
    # Fewer would leave processors idle.
    least = runtime.processors() * _LEAST_BLOCKS
    return min(count, max(least, min(resident, in_cache)))
