"""Losses of pairs on a GPU: a block of threads splits a row or a column, a thread works on an element."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda, int64

from refloss.kernels.contrastive.loop import (
    ALL,
    REFERENCE,
    SOME,
    Sides,
    Smoothing,
    Upstream,
    Written,
    accurate_element,
    accurate_parts,
    accurate_side,
    are_whole,
    coefficient,
    element,
    keep_split,
    mark_crowds,
)
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.block import long_sum, row_sum
from refloss.kernels.gpu.jit import gpu_kernel
from refloss.kernels.gpu.runtime import LARGEST_BLOCK
from refloss.kernels.rows import row_offset
from refloss.kernels.softmax.gpu_soft import split_row
from refloss.kernels.softmax.refine import accurate_term, is_close, is_near
from refloss.numerics.exponential import exp_difference
from refloss.numerics.formats import read, store_pair
from refloss.numerics.pairs import add, pair

_BLOCK = 256


@gpu_kernel
def split_rows(rows, written, lines, smoothing):
    """loop.split_rows, a block for each row."""
    scratch = cuda.shared.array(LARGEST_BLOCK, int64)
    line = lines[cuda.blockIdx.x]
    for index in range(cuda.blockIdx.x, rows.classes, cuda.gridDim.x):
        start = row_offset(rows, index)
        split, reference = split_row(rows, start, index, scratch)
        distances = pair(0.0)
        if smoothing.smooth:
            for c in range(cuda.threadIdx.x, rows.classes, cuda.blockDim.x):
                line[c] = split.maximum - read(rows.memory, start + c * rows.class_stride)
            distances = row_sum(line, scratch)
        if cuda.threadIdx.x == 0:
            keep_split(split, reference, index, written, distances, float(rows.classes), smoothing)
        cuda.syncthreads()


@gpu_kernel
def split_accurately(rows, written, lines):
    """loop.split_accurately, a block for each row."""
    scratch = cuda.shared.array(LARGEST_BLOCK, int64)
    high, low = lines[2 * cuda.blockIdx.x], lines[2 * cuda.blockIdx.x + 1]
    for index in range(cuda.blockIdx.x, rows.classes, cuda.gridDim.x):
        if written.flags[index] == 0:
            continue
        start, reference = row_offset(rows, index), written.side[REFERENCE, index]
        for c in range(cuda.threadIdx.x, rows.classes, cuda.blockDim.x):
            term = accurate_term(read(rows.memory, start + c * rows.class_stride), reference)
            high[c], low[c] = term if c != index else pair(0.0)
        others = add(long_sum(high, scratch), long_sum(low, scratch))
        if cuda.threadIdx.x == 0:
            accurate_side(written, index, read(rows.memory, start + index * rows.class_stride), others)
        cuda.syncthreads()


@gpu_kernel
def pair_elements(rows, gradient, sides, upstream, smoothing, again):
    """loop.pair_rows, a thread for each element."""
    count = rows.classes
    for place in range(cuda.grid(1), count * count, cuda.gridsize(1)):
        i, j = place // count, place % count
        if again and sides.row_flags[i] == 0:
            continue
        x = read(rows.memory, row_offset(rows, i) + j * rows.class_stride)
        term = exp_difference(x, sides.rows[REFERENCE, i])
        column_term = exp_difference(x, sides.columns[REFERENCE, j])
        of_row = coefficient(upstream, i)
        value, size = element(i, j, term, column_term, sides, upstream, of_row, smoothing)
        close = is_close(value[0], size) or are_whole(i, j, sides)
        if again and (close or sides.row_flags[i] == ALL):
            value = accurate_element(i, j, x, sides, upstream, smoothing)
        elif close:
            sides.row_flags[i] = SOME
            sides.column_flags[j] = SOME
        if not again and is_near(value[0], size):
            cuda.atomic.add(sides.near, i, 1)
        store_pair(gradient.memory, row_offset(gradient, i) + j * gradient.class_stride, value)


def run(
    similarity: np.ndarray,
    gradient: np.ndarray | None,
    sides: Sides,
    losses: np.ndarray,
    upstream: Upstream,
    smoothing: Smoothing,
) -> None:
    """Run a task: losses are written, and the gradient."""
    count = len(similarity)
    both = runtime.rows_on_device(similarity, 1), runtime.rows_on_device(similarity, 0)
    threads = min(_BLOCK, -(-max(1, count) // 32) * 32)
    blocks = min(count, 2 * runtime.processors())
    lines, lost = runtime.Array((max(2 * blocks, 1), count), np.float64), runtime.Array.of(losses)
    arrays: Any = [runtime.Array.of(values) for values in sides]
    kept = Sides(*arrays)
    pairs_lost: Any = lost
    for rows, side in zip(both, (kept.rows, kept.columns), strict=True):
        runtime.launch(split_rows, blocks, threads, rows, Written(side, pairs_lost), lines, smoothing)
    lost.download(losses)
    if gradient is None:
        return
    written = runtime.Gradient(gradient)
    destination = runtime.rows_on_device(written.array, 1)
    of_elements = runtime.grid(count * count, _BLOCK), _BLOCK
    runtime.launch(pair_elements, *of_elements, both[0], destination, kept, upstream, smoothing, False)
    for array, values in list(zip(arrays, sides, strict=True))[4:]:
        array.download(values)
    # Where no row is marked, these have nothing to do.
    mark_crowds(sides)
    kept = kept._replace(row_flags=sides.row_flags, column_flags=sides.column_flags)
    for rows, of_rows in zip(both, accurate_parts(kept), strict=True):
        runtime.launch(split_accurately, blocks, threads, rows, of_rows, lines)
    runtime.launch(pair_elements, *of_elements, both[0], destination, kept, upstream, smoothing, True)
    written.finish()
