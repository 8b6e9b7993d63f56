"""Rows of tokens: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.rows import any_rows_of
from refloss.kernels.tokens.loop import INPUTS, SLOPES, Given, Results, TokenLoop, compiled
from refloss.numerics.memory import as_writable

BLOCK_TOKENS = 1 << 12


class Task(NamedTuple):
    """A loss of tokens as it is stated: arrays [B, T], and a gradient, if it is wanted, of each of the first ones."""

    loop: TokenLoop
    inputs: tuple[np.ndarray, ...]
    gradients: tuple[np.ndarray | None, ...]
    given: Given


def token_losses(task: Task, backend: str) -> Results:
    """Losses of the tokens as pairs, and their notes; gradients are written into the task's buffers."""
    counts, coefficients, cotangent = map(as_writable, task.given[:3])
    given = task.given._replace(counts=counts, coefficients=coefficients, cotangent=cotangent)
    return _device(backend)(task._replace(given=given))


def result_shapes(task: Task) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of what is written."""
    shape = task.given.counts.shape
    return (2, *shape), (task.loop.notes, *shape)


def wanted_of(task: Task) -> tuple[bool, ...]:
    """Which gradients are wanted."""
    return tuple(k < len(task.gradients) and task.gradients[k] is not None for k in range(SLOPES))


def _device(backend: str) -> Callable[[Task], Results]:
    if runs_on_gpu(backend):
        from refloss.kernels.tokens import gpu

        return gpu.run
    return _run


def _run(task: Task) -> Results:
    results = Results(*map(np.empty, result_shapes(task)))
    rows = [any_rows_of(array, 1) for array in task.inputs]
    written = [rows[0] if buffer is None else any_rows_of(buffer, 1) for buffer in task.gradients]
    rows += rows[:1] * (INPUTS - len(rows))
    written += rows[:1] * (SLOPES - len(written))
    kernel, wanted = compiled(task.loop), wanted_of(task)

    def work(first: int, last: int, _: None) -> None:
        kernel(tuple(rows), tuple(written), wanted, task.given, results, first, last)

    count, tokens = task.given.counts.shape
    parallel.run_blocks(work, count, max(1, BLOCK_TOKENS // max(1, tokens)), lambda: None)
    return results
