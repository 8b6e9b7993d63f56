"""Rows of logits against a teacher on a GPU: a thread for each row, with the helpers and in the order of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.kernels.topk.loop import LINES, X, asked_of, clear, work_on
from refloss.numerics.formats import read, store
from refloss.numerics.pairs import scaled

if TYPE_CHECKING:
    from refloss.kernels.topk.run import Task

_BLOCK = 64
# Of the scratch that all threads work in: as many rows as fit are worked on at a time.
_SCRATCH_BYTES = 1 << 28


class Memory(NamedTuple):
    """What threads work in."""

    scratches: Any  # [threads, lines, V] float64


@gpu_kernel
def topk_rows(rows, gradient, given, losses, memory, with_gradient, wide):
    """loop.topk_rows, a thread for each row."""
    threads = memory.scratches.shape[0]
    if cuda.grid(1) < threads:
        scratch = memory.scratches[cuda.grid(1)]
        for row in range(cuda.grid(1), given.counts.size, threads):
            losses[0, row], losses[1, row] = 0.0, 0.0
            if given.counts[row]:
                start = row_offset(rows, row)
                for c in range(rows.classes):
                    scratch[X, c] = read(rows.memory, start + c * rows.class_stride)
                loss = work_on(scratch, asked_of(given, row), with_gradient, wide)
                losses[0, row], losses[1, row] = scaled(loss, given.factor)
            else:
                clear(scratch)
            start = row_offset(gradient, row)
            for c in range(gradient.classes if with_gradient else 0):
                store(gradient.memory, start + c * gradient.class_stride, scratch[X, c])


def run(task: Task) -> np.ndarray:
    """Losses of the rows [2, R], pairs; the gradient is written."""
    count, axis = len(task.given.counts), task.logits.ndim - 1
    losses = np.empty((2, count))
    rows = runtime.rows_on_device(task.logits, axis)
    buffer = None if task.gradient is None else runtime.Gradient(task.gradient)
    gradient = rows if buffer is None else runtime.rows_on_device(buffer.array, axis)
    lanes = max(1, min(count, _SCRATCH_BYTES // max(1, 8 * LINES * rows.classes)))
    memory = Memory(runtime.Array((lanes, LINES, rows.classes), np.float64))
    written = runtime.Array(losses.shape, losses.dtype)
    wide = buffer is not None and task.gradient is not None and task.gradient.dtype == np.float64
    blocks = -(-lanes // min(_BLOCK, runtime.LARGEST_BLOCK))
    arguments = (rows, gradient, task.given, written, memory, buffer is not None, wide)
    runtime.launch(topk_rows, blocks, _BLOCK, *arguments)
    written.download(losses)
    if buffer is not None:
        buffer.finish()
    return losses
