"""Rows of tokens on a GPU: a thread for each row, with the helper and in the order of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.kernels.tokens.loop import INPUTS, LINES, SLOPES, Results, TokenLoop, work
from refloss.kernels.tokens.run import result_shapes, wanted_of
from refloss.numerics.formats import read, store_pair

if TYPE_CHECKING:
    from refloss.kernels.tokens.run import Task


class Memory(NamedTuple):
    """What threads work in."""

    scratches: Any  # [threads, lines, T] float64


_BLOCK = 64
# Of the scratch that all threads work in: as many rows as fit are worked on at a time.
_SCRATCH_BYTES = 1 << 28


@gpu_function
def _load(rows, index, line):
    start = row_offset(rows, index)
    for i in range(line.size):
        line[i] = read(rows.memory, start + i * rows.class_stride)


@gpu_function
def _save(high, low, gradient, index):
    start = row_offset(gradient, index)
    for i in range(high.size):
        store_pair(gradient.memory, start + i * gradient.class_stride, (high[i], low[i]))


@jit.once
def _kernel(loop: TokenLoop) -> Any:
    """The kernel of a description."""
    of_row, inputs, slopes = work(loop), loop.inputs, loop.slopes

    @gpu_kernel
    def token_rows(rows, gradients, wanted, given, results, memory):
        threads = memory.scratches.shape[0]
        if cuda.grid(1) < threads:
            scratch = memory.scratches[cuda.grid(1)]
            for index in range(cuda.grid(1), given.counts.shape[0], threads):
                _load(rows[0], index, scratch[0])
                if inputs > 1:
                    _load(rows[1], index, scratch[1])
                if inputs > 2:
                    _load(rows[2], index, scratch[2])
                if inputs > 3:
                    _load(rows[3], index, scratch[3])
                if inputs > 4:
                    _load(rows[4], index, scratch[4])
                of_row(scratch, index, given, results, wanted[0] or wanted[1])
                if wanted[0]:
                    _save(scratch[INPUTS], scratch[INPUTS + 1], gradients[0], index)
                if slopes > 1 and wanted[1]:
                    _save(scratch[INPUTS + 3], scratch[INPUTS + 4], gradients[1], index)

    return token_rows


def run(task: Task) -> Results:
    """Losses of the tokens, pairs, and their notes; gradients are written."""
    count, tokens = task.given.counts.shape
    rows = [runtime.rows_on_device(array, 1) for array in task.inputs]
    buffers = [None if buffer is None else runtime.Gradient(buffer) for buffer in task.gradients]
    written = [rows[0] if buffer is None else runtime.rows_on_device(buffer.array, 1) for buffer in buffers]
    rows += rows[:1] * (INPUTS - len(rows))
    written += rows[:1] * (SLOPES - len(written))
    lanes = max(1, min(count, _SCRATCH_BYTES // max(1, 8 * tokens * LINES)))
    memory = Memory(runtime.Array((lanes, LINES, tokens), np.float64))
    kept: list[Any] = [runtime.Array(shape, np.float64) for shape in result_shapes(task)]
    arguments = (tuple(rows), tuple(written), wanted_of(task), task.given, Results(*kept), memory)
    blocks = -(-lanes // min(_BLOCK, runtime.LARGEST_BLOCK))
    runtime.launch(_kernel(task.loop), blocks, _BLOCK, *arguments)
    for buffer in buffers:
        if buffer is not None:
            buffer.finish()
    return Results(*(array.download() for array in kept))
