"""Rows of vectors: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.rows import any_rows_of
from refloss.kernels.vectors.loop import VECTORS, Given, VectorLoop, compiled
from refloss.numerics.memory import as_writable

BLOCK_ELEMENTS = 1 << 15


class Task(NamedTuple):
    """A loss of rows of vectors as it is stated: the vectors lie along the last axis of arrays of one shape."""

    loop: VectorLoop
    inputs: tuple[np.ndarray, ...]
    gradients: tuple[np.ndarray | None, ...]
    given: Given


def vector_losses(task: Task, backend: str) -> np.ndarray:
    """The losses of the rows [2, R], pairs; gradients are written into the task's buffers."""
    given = task.given
    given = given._replace(
        labels=as_writable(given.labels), factor=as_writable(given.factor), cotangent=as_writable(given.cotangent)
    )
    return _device(backend)(task._replace(given=given))


def row_count(task: Task) -> int:
    """How many rows there are."""
    return int(np.prod(task.inputs[0].shape[:-1], dtype=np.int64))


def _device(backend: str) -> Callable[[Task], np.ndarray]:
    if runs_on_gpu(backend):
        from refloss.kernels.vectors import gpu

        return gpu.run
    return _run


def _run(task: Task) -> np.ndarray:
    count, axis = row_count(task), task.inputs[0].ndim - 1
    losses = np.empty((2, count))
    rows = [any_rows_of(array, axis) for array in task.inputs]
    written = [
        rows[0] if buffer is None else any_rows_of(buffer, axis)
        for buffer in (*task.gradients, *[None] * (VECTORS - len(rows)))
    ]
    rows += rows[:1] * (VECTORS - len(rows))
    wanted = tuple(k < len(task.gradients) and task.gradients[k] is not None for k in range(VECTORS))
    kernel = compiled(task.loop)

    def work(first: int, last: int, _: None) -> None:
        kernel(tuple(rows), tuple(written), wanted, task.given, losses, first, last)

    block = max(1, BLOCK_ELEMENTS // max(1, task.inputs[0].shape[-1]))
    parallel.run_blocks(work, count, block, lambda: None)
    return losses
