"""Rows of logits against a teacher: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.rows import any_rows_of
from refloss.kernels.topk.loop import Given, topk_rows
from refloss.numerics.memory import as_writable

BLOCK_ELEMENTS = 1 << 14


class Task(NamedTuple):
    """A loss of rows as it is stated: the classes are on the last axis."""

    logits: np.ndarray
    gradient: np.ndarray | None
    given: Given


def topk_losses(task: Task, backend: str) -> np.ndarray:
    """The losses of the rows [2, R], pairs; the gradient is written into the task's buffer."""
    log_probs, classes, counts, cotangent = map(as_writable, task.given[:4])
    given = task.given._replace(log_probs=log_probs, classes=classes, counts=counts, cotangent=cotangent)
    return _device(backend)(task._replace(given=given))


def _device(backend: str) -> Callable[[Task], np.ndarray]:
    if runs_on_gpu(backend):
        from refloss.kernels.topk import gpu

        return gpu.run
    return _run


def _run(task: Task) -> np.ndarray:
    count, axis = len(task.given.counts), task.logits.ndim - 1
    losses = np.empty((2, count))
    rows = any_rows_of(task.logits, axis)
    gradient = rows if task.gradient is None else any_rows_of(task.gradient, axis)

    def work(first: int, last: int, _: None) -> None:
        topk_rows(rows, gradient, task.given, losses, task.gradient is not None, first, last)

    block = max(1, BLOCK_ELEMENTS // max(1, rows.classes))
    parallel.run_blocks(work, count, block, lambda: None)
    return losses
