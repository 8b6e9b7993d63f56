"""Divergences on a GPU: a thread for each row, with the helpers and in the order of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.divergences.row import LINES, PART, PART_LOW, X, Y, clear, know, loss_of, write_gradient
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair
from refloss.numerics.pairs import rounded

if TYPE_CHECKING:
    from refloss.kernels.divergences.run import Task

_BLOCK = 64
# Of the scratch that all threads work in: as many rows as fit are worked on at a time.
_SCRATCH_BYTES = 1 << 28


class Memory(NamedTuple):
    """What threads work in and leave."""

    scratches: Any  # [threads, lines, V] float64
    losses: Any  # [R] float64


@gpu_function
def _load(rows, row, line):
    start = row_offset(rows, row)
    for c in range(rows.classes):
        line[c] = read(rows.memory, start + c * rows.class_stride)


@gpu_function
def _save(scratch, rows, row):
    start = row_offset(rows, row)
    for c in range(rows.classes):
        store_pair(rows.memory, start + c * rows.class_stride, (scratch[PART, c], scratch[PART_LOW, c]))


@gpu_kernel
def divergence_rows(logits, gradients, wanted, given, memory):
    """loop.divergence_rows, a thread for each row."""
    student, teacher = logits
    of_student, of_teacher = gradients
    threads = memory.scratches.shape[0]
    if cuda.grid(1) < threads:
        scratch = memory.scratches[cuda.grid(1)]
        for row in range(cuda.grid(1), memory.losses.size, threads):
            memory.losses[row] = 0.0
            if not given.counts[row]:
                clear(scratch)
                if wanted[0]:
                    _save(scratch, of_student, row)
                if wanted[1]:
                    _save(scratch, of_teacher, row)
                continue
            _load(student, row, scratch[X])
            _load(teacher, row, scratch[Y])
            known = know(scratch, given)
            memory.losses[row] = rounded(loss_of(known, given))
            if wanted[0]:
                write_gradient(scratch, known, given, row, False)
                _save(scratch, of_student, row)
            if wanted[1]:
                write_gradient(scratch, known, given, row, True)
                _save(scratch, of_teacher, row)


def run(task: Task) -> np.ndarray:
    """The divergences of the rows; gradients are written."""
    axis, count = task.student.ndim - 1, len(task.given.counts)
    logits = runtime.rows_on_device(task.student, axis), runtime.rows_on_device(task.teacher, axis)
    buffers = [None if buffer is None else runtime.Gradient(buffer) for buffer in task.gradients]
    gradients = tuple(
        rows if buffer is None else runtime.rows_on_device(buffer.array, axis)
        for rows, buffer in zip(logits, buffers, strict=True)
    )
    wanted = buffers[0] is not None, buffers[1] is not None
    classes = task.student.shape[-1]
    lanes = max(1, min(count, _SCRATCH_BYTES // max(1, 8 * LINES * classes)))
    memory = Memory(runtime.Array((lanes, LINES, classes), np.float64), runtime.Array(count, np.float64))
    blocks = -(-lanes // min(_BLOCK, runtime.LARGEST_BLOCK))
    runtime.launch(divergence_rows, blocks, _BLOCK, logits, gradients, wanted, task.given, memory)
    for buffer in buffers:
        if buffer is not None:
            buffer.finish()
    losses: np.ndarray = memory.losses.download()
    return losses
