"""Cross-entropy on a GPU: the rows of kernels.cross_entropy, a block of threads for each, or a thread for a short one.

A row is read three times: its largest logits, the sum of its exponentials, its gradient. Only so many rows are at work
at a time that the second and third reading find them in the L2 cache. What comes once a row is one thread's work.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda, float64, int64

from refloss.kernels import launch_cross_entropy as host
from refloss.kernels.cross_entropy import Output, Terms, coefficient_of, label_factors, label_loss
from refloss.kernels.cross_entropy_columns import MAX_CLASSES
from refloss.kernels.cuda import runtime, soft_rows
from refloss.kernels.cuda.block import block_max, block_sum
from refloss.kernels.cuda.gpu_jit import gpu_function, gpu_kernel
from refloss.kernels.cuda.runtime import LARGEST_BLOCK
from refloss.kernels.launch_cross_entropy import Answer, Task, divided, label_normaliser, total
from refloss.kernels.rows import Rows, row_offset
from refloss.kernels.softmax import split_class, undefined_split
from refloss.numerics.chunks import (
    BYTES,
    chunk_scan,
    chunk_size,
    chunk_value,
    load_chunk,
    load_one,
    save_chunk,
    save_one,
    with_value,
)
from refloss.numerics.exponential import exp_difference
from refloss.numerics.formats import bounds, read, store, value_of
from refloss.numerics.pairs import add, pair, rounded, times
from refloss.numerics.sums import exact_sum, grid_counts, grid_total

__all__ = ["Answer", "Task", "cross_entropy", "divided", "exact_sum", "label_normaliser", "total"]

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
def _split(logit, place, logits, coarse, fine):
    """The split of a row from the ordinal of its largest other logit and the sums of their exponentials."""
    _, infinity = bounds(logits.memory)
    sound = place < infinity
    reference = value_of(place, logits.memory) if sound else -np.inf
    if not sound or (reference == -np.inf and logit == -np.inf):
        return undefined_split(sound, -np.inf)
    return split_class(logit, reference, grid_total(coarse, fine, 0) if reference > -np.inf else (0.0, 0.0))


@gpu_function
def _finish(split, label, ignored, index, terms, output):
    """What a row yields; the factor of its exponentials and the gradient at its label."""
    output.lse[index] = rounded(add(pair(split.maximum), split.log_total))
    output.nll[index] = 0.0 if ignored else rounded(split.nll)
    if ignored:
        output.loss[index] = 0.0
        return (0.0, 0.0), 0.0
    if not split.defined:
        output.loss[index] = np.nan
        return (np.nan, np.nan), np.nan
    output.loss[index] = label_loss(split, label, terms, (0.0, 0.0))
    return label_factors(split, label, terms, coefficient_of(terms, index))


def _largest(load: Any) -> Any:
    """The ordinal of the largest logit but the label's, or _UNSOUND; of the block."""

    @gpu_function
    def largest(logits, start, label, width, room):
        memory, stride = logits.memory, logits.class_stride
        lowest, infinity = bounds(memory)
        highest = lowest
        for c in range(cuda.threadIdx.x * width, logits.classes, cuda.blockDim.x * width):
            chunk = load(memory, start + c * stride)
            for k in range(width):
                place, magnitude = chunk_scan(memory, chunk, k)
                if c + k != label and place > highest:
                    highest = place
                if magnitude > infinity or place >= infinity:
                    highest = _UNSOUND
        return block_max(highest, room)

    return largest


def _sums(load: Any) -> Any:
    """The sums of the others' exponentials on the grids; of the block."""

    @gpu_function
    def sums(logits, start, label, width, reference, room):
        memory, stride = logits.memory, logits.class_stride
        coarse, fine = np.int64(0), np.int64(0)
        for c in range(cuda.threadIdx.x * width, logits.classes, cuda.blockDim.x * width):
            chunk = load(memory, start + c * stride)
            for k in range(width):
                counts = grid_counts(exp_difference(chunk_value(memory, chunk, k), reference))
                if c + k != label:
                    coarse += counts[0]
                    fine += counts[1]
        return block_sum(coarse, room), block_sum(fine, room)

    return sums


def _writer(load: Any, save: Any) -> Any:
    """The gradient: the exponentials times a factor, and the label's own."""

    @gpu_function
    def write(logits, start, gradient, to, label, width, reference, factor, own):
        memory, stride = logits.memory, logits.class_stride
        for c in range(cuda.threadIdx.x * width, logits.classes, cuda.blockDim.x * width):
            chunk = load(memory, start + c * stride)
            result = (np.int64(0), np.int64(0))
            for k in range(width):
                value = times(exp_difference(chunk_value(memory, chunk, k), reference), factor)
                result = with_value(gradient.memory, result, k, own if c + k == label else value)
            save(gradient.memory, to + c * gradient.class_stride, result)

    return write


@functools.cache
def _block_rows(in_chunks: bool) -> Any:
    """The kernel for rows of any length, in chunks where memory allows it, else element by element."""
    load, save = (load_chunk, save_chunk) if in_chunks else (load_one, save_one)
    largest, sums, write = _largest(load), _sums(load), _writer(load, save)

    @gpu_kernel
    def label_rows(logits, gradient, labels, terms, output, with_gradient):
        """A block for each row."""
        room = cuda.shared.array(LARGEST_BLOCK, int64)
        shared = cuda.shared.array(3, float64)
        width = chunk_size(logits.memory) if in_chunks else 1
        for index in range(cuda.blockIdx.x, labels.size, cuda.gridDim.x):
            start = row_offset(logits, index)
            ignored = labels[index] == terms.ignore_index
            label = -1 if ignored else labels[index]
            highest = largest(logits, start, label, width, room)
            lowest, infinity = bounds(logits.memory)
            reference = value_of(highest, logits.memory) if lowest < highest < infinity else 0.0
            coarse, fine = sums(logits, start, label, width, reference, room)
            if cuda.threadIdx.x == 0:
                logit = read(logits.memory, start + label * logits.class_stride) if label >= 0 else -np.inf
                split = _split(logit, highest, logits, coarse, fine)
                factor, own = _finish(split, label, ignored, index, terms, output)
                shared[0], shared[1], shared[2] = factor[0], factor[1], own
            cuda.syncthreads()
            if with_gradient:
                factor, to = (shared[0], shared[1]), row_offset(gradient, index)
                if ignored or factor[0] != factor[0]:
                    soft_rows.fill(gradient, to, shared[2])
                else:
                    write(logits, start, gradient, to, label, width, reference, factor, shared[2])
            cuda.syncthreads()

    return label_rows


@gpu_kernel
def short_rows(logits, gradient, labels, terms, output, with_gradient):
    """A thread for each row: neighbouring threads read neighbouring rows, whose classes are few."""
    memory, stride = logits.memory, logits.class_stride
    lowest, infinity = bounds(memory)
    for index in range(cuda.grid(1), labels.size, cuda.gridsize(1)):
        start, to = row_offset(logits, index), row_offset(gradient, index)
        ignored = labels[index] == terms.ignore_index
        label = -1 if ignored else labels[index]
        highest = lowest
        for c in range(logits.classes):
            place, magnitude = chunk_scan(memory, load_one(memory, start + c * stride), 0)
            if c != label and place > highest:
                highest = place
            if magnitude > infinity or place >= infinity:
                highest = _UNSOUND
        reference = value_of(highest, memory) if lowest < highest < infinity else 0.0
        coarse, fine = np.int64(0), np.int64(0)
        for c in range(logits.classes):
            if c != label:
                counts = grid_counts(exp_difference(read(memory, start + c * stride), reference))
                coarse += counts[0]
                fine += counts[1]
        logit = read(memory, start + label * stride) if label >= 0 else -np.inf
        factor, own = _finish(_split(logit, highest, logits, coarse, fine), label, ignored, index, terms, output)
        if with_gradient:
            for c in range(logits.classes):
                value = times(exp_difference(read(memory, start + c * stride), reference), factor)
                value = own if c == label or ignored or factor[0] != factor[0] else value
                store(gradient.memory, to + c * gradient.class_stride, value)


def cross_entropy(task: Task) -> Answer:
    """Run a task; gradients are written into the task's buffers."""
    return host.evaluate(task, _run)


def _run(task: Task, terms: Terms, output: Output, count: int) -> None:
    logits = runtime.rows_on_device(task.logits, task.class_axis)
    written = None if task.gradient is None else runtime.Gradient(task.gradient)
    gradient = logits if written is None else runtime.rows_on_device(written.array, task.class_axis)
    arrays: Any = [runtime.Array(values.shape, values.dtype) for values in output]
    results = Output(*arrays)
    if host.has_labels(task) and not terms.smooth:
        kernel, blocks, threads = _plan(logits, gradient, count)
        runtime.launch(kernel, blocks, threads, logits, gradient, task.target, terms, results, written is not None)
    else:
        soft_rows.run(task, terms, logits, gradient, results, count)
    for result, values in zip(arrays, output, strict=True):
        result.download(values)
    if written is not None:
        written.finish()


def _plan(logits: Rows, gradient: Rows, count: int) -> tuple[Any, int, int]:
    """The kernel for some rows, and how many blocks of how many threads."""
    if logits.classes <= MAX_CLASSES:
        return short_rows, runtime.grid(count, _SHORT_BLOCK), _SHORT_BLOCK
    in_chunks = _is_aligned(logits) and _is_aligned(gradient) and logits.memory.dtype == gradient.memory.dtype
    width = BYTES // logits.memory.itemsize if in_chunks else 1
    threads = min(LARGE_BLOCK, max(32, -(-logits.classes // (_ELEMENTS * width)) * 32))
    return _block_rows(in_chunks), blocks_at_work(logits, threads, count), threads


def blocks_at_work(logits: Rows, threads: int, count: int) -> int:
    """As many blocks as the processors hold, unless their rows would leave the cache before they are read again."""
    row = logits.classes * logits.memory.itemsize
    resident = runtime.processors() * max(1, _THREADS // threads)
    in_cache = runtime.cache_bytes() // (2 * max(1, row))
    # Fewer would leave processors idle.
    least = runtime.processors() * _LEAST_BLOCKS
    return min(count, max(least, min(resident, in_cache)))


def _is_aligned(rows: Rows) -> bool:
    """Whether all of its rows are whole chunks of memory."""
    item = rows.memory.itemsize
    steps = [
        rows.origin,
        rows.classes,
        *(stride for stride, size in zip(rows.strides, rows.shape, strict=True) if size > 1),
    ]
    address = rows.memory.__array_interface__["data"][0] if runtime.is_resident(rows.memory) else 0
    return rows.class_stride == 1 and address % BYTES == 0 and all(step * item % BYTES == 0 for step in steps)
