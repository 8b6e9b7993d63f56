"""Divergences of rows: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.divergences.loop import divergence_rows
from refloss.kernels.divergences.row import LINES, Given
from refloss.kernels.rows import any_rows_of
from refloss.numerics.memory import as_writable

BLOCK_ELEMENTS = 1 << 14


class Task(NamedTuple):
    """Divergences as their loss states them: the classes are on the last axis, and there are some."""

    student: np.ndarray
    teacher: np.ndarray
    gradients: tuple[np.ndarray | None, np.ndarray | None]
    given: Given


def divergences(task: Task, backend: str) -> np.ndarray:
    """Those of the rows [R]; gradients are written into the task's buffers."""
    given = task.given
    given = given._replace(counts=as_writable(given.counts), upstream=as_writable(given.upstream))
    return _device(backend)(task._replace(given=given))


def _device(backend: str) -> Callable[[Task], np.ndarray]:
    if runs_on_gpu(backend):
        from refloss.kernels.divergences import gpu

        return gpu.run
    return _run


def _run(task: Task) -> np.ndarray:
    axis = task.student.ndim - 1
    logits = any_rows_of(task.student, axis), any_rows_of(task.teacher, axis)
    gradients = tuple(
        rows if buffer is None else any_rows_of(buffer, axis)
        for rows, buffer in zip(logits, task.gradients, strict=True)
    )
    wanted = task.gradients[0] is not None, task.gradients[1] is not None
    losses = np.empty(len(task.given.counts))

    def work(first: int, last: int, scratch: np.ndarray) -> None:
        divergence_rows(logits, gradients, wanted, task.given, losses, scratch, first, last)

    block = max(1, BLOCK_ELEMENTS // logits[0].classes)
    parallel.run_blocks(work, len(losses), block, lambda: np.empty((LINES, logits[0].classes)))
    return losses
