"""Rows of vectors on a GPU: a thread for each row, with the helper and in the order of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.kernels.vectors.loop import VECTORS, VectorLoop, coefficient_of, loss_of
from refloss.kernels.vectors.run import row_count
from refloss.numerics.formats import read, store_pair
from refloss.numerics.pairs import scaled

if TYPE_CHECKING:
    from refloss.kernels.vectors.run import Task


class Results(NamedTuple):
    """What threads work in and leave."""

    scratches: Any  # [threads, lines, D] float64
    losses: Any  # [2, R] float64


_BLOCK = 64
# Of the scratch that all threads work in: as many rows as fit are worked on at a time.
_SCRATCH_BYTES = 1 << 28


@gpu_function
def _load(rows, index, line):
    start = row_offset(rows, index)
    for i in range(line.size):
        line[i] = read(rows.memory, start + i * rows.class_stride)


@gpu_function
def _save(high, low, coefficient, gradient, index):
    start = row_offset(gradient, index)
    for i in range(high.size):
        store_pair(gradient.memory, start + i * gradient.class_stride, scaled((high[i], low[i]), coefficient))


@jit.once
def _kernel(loop: VectorLoop) -> Any:
    """The kernel of a description."""
    of_row, vectors = loop.of_row, loop.vectors

    @gpu_kernel
    def vector_rows(rows, gradients, wanted, given, results):
        with_slopes = wanted[0] or wanted[1] or wanted[2]
        threads = results.scratches.shape[0]
        if cuda.grid(1) < threads:
            scratch = results.scratches[cuda.grid(1)]
            for index in range(cuda.grid(1), results.losses.shape[1], threads):
                _load(rows[0], index, scratch[0])
                if vectors > 1:
                    _load(rows[1], index, scratch[1])
                if vectors > 2:
                    _load(rows[2], index, scratch[2])
                value = of_row(scratch, given.labels[index], given.parameters, with_slopes)
                results.losses[0, index], results.losses[1, index] = loss_of(value, given, index)
                coefficient = coefficient_of(given, index)
                if wanted[0]:
                    _save(scratch[vectors], scratch[vectors + 1], coefficient, gradients[0], index)
                if wanted[1]:
                    _save(scratch[vectors + 2], scratch[vectors + 3], coefficient, gradients[1], index)
                if wanted[2]:
                    _save(scratch[vectors + 4], scratch[vectors + 5], coefficient, gradients[2], index)

    return vector_rows


def run(task: Task) -> np.ndarray:
    """The losses of the rows, pairs; gradients are written."""
    count, size = row_count(task), task.inputs[0].shape[-1]
    axis, missing = task.inputs[0].ndim - 1, VECTORS - len(task.inputs)
    rows = [runtime.rows_on_device(array, axis) for array in task.inputs]
    buffers = [None if buffer is None else runtime.Gradient(buffer) for buffer in task.gradients]
    written = [
        rows[0] if buffer is None else runtime.rows_on_device(buffer.array, axis)
        for buffer in (*buffers, *[None] * missing)
    ]
    wanted = tuple(k < len(buffers) and buffers[k] is not None for k in range(VECTORS))
    lanes = max(1, min(count, _SCRATCH_BYTES // max(1, 8 * size * task.loop.lines)))
    scratches, losses = (runtime.Array(shape, np.float64) for shape in ((lanes, task.loop.lines, size), (2, count)))
    arguments = (tuple(rows + rows[:1] * missing), tuple(written), wanted, task.given, Results(scratches, losses))
    runtime.launch(_kernel(task.loop), -(-lanes // min(_BLOCK, runtime.LARGEST_BLOCK)), _BLOCK, *arguments)
    for buffer in buffers:
        if buffer is not None:
            buffer.finish()
    return losses.download()
