"""Log-probabilities of rows: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.log_probs.loop import Given, Results, log_prob_rows
from refloss.kernels.rows import any_rows_of
from refloss.numerics.memory import as_writable
from refloss.numerics.shares import divisor

BLOCK_ELEMENTS = 1 << 14


class Task(NamedTuple):
    """Log-probabilities as their loss states them: the classes are on the last axis."""

    logits: np.ndarray
    gradient: np.ndarray | None
    given: Given


def log_probs_of_rows(task: Task, backend: str) -> Results:
    """Log-probabilities [R, K] and entropies [R]; the gradient is written into the task's buffer."""
    divisor(lambda: Fraction(1), is_mean=False)  # log-probabilities are not reduced
    return _device(backend)(task._replace(given=for_kernels(task.given)))


def for_kernels(given: Given) -> Given:
    """What rows are given, in arrays that kernels are compiled for."""
    classes, counts, upstream, of_entropy = map(as_writable, given[:4])
    return given._replace(classes=classes, counts=counts, upstream=upstream, of_entropy=of_entropy)


def new_results(given: Given) -> Results:
    """Memory for what is written."""
    return Results(np.empty(given.classes.shape), np.empty(len(given.classes)))


def _device(backend: str) -> Callable[[Task], Results]:
    if runs_on_gpu(backend):
        from refloss.kernels.log_probs import gpu

        return gpu.run
    return _run


def _run(task: Task) -> Results:
    results, axis = new_results(task.given), task.logits.ndim - 1
    rows = any_rows_of(task.logits, axis)
    gradient = rows if task.gradient is None else any_rows_of(task.gradient, axis)

    def work(first: int, last: int, _: None) -> None:
        log_prob_rows(rows, gradient, task.given, results, task.gradient is not None, first, last)

    block = max(1, BLOCK_ELEMENTS // max(1, rows.classes))
    parallel.run_blocks(work, len(task.given.classes), block, lambda: None)
    return results
