"""Routers: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.routers.loop import CHOICES, SLOPES, SQUARES, Given, Results, Sums, router_rows
from refloss.kernels.rows import any_rows_of
from refloss.numerics.memory import as_writable
from refloss.numerics.sums import LIMBS, accumulated

# Elements a thread takes at a time.
BLOCK_ELEMENTS = 1 << 14


class Task(NamedTuple):
    """Rows first ... last of a router's logits, whose experts are on the last axis."""

    logits: np.ndarray
    gradient: np.ndarray | None
    given: Given
    first: int
    last: int


class Totals(NamedTuple):
    """Of rows that count: the sums of each expert's probabilities, in units of 2^-1074, and how many rows have none."""

    probabilities: list[int]
    undefined: int


def squares_of(task: Task, backend: str) -> Results:
    """lse and lse² of the rows, 0 where a row does not count; the gradient of Σ lse² times the factor is written."""
    rows = len(task.given.counts)
    results = Results(np.zeros(rows), np.zeros((2, rows)))
    _run(task, results, _sums(0), SQUARES, backend)
    return results


def choices_of(task: Task, backend: str) -> Totals:
    """Probabilities of experts, added up; the experts that rows choose are written."""
    sums = _sums(task.logits.shape[-1])
    _run(task._replace(gradient=None), _no_results(), sums, CHOICES, backend)
    return Totals([accumulated(limbs) for limbs in sums.limbs], int(sums.undefined[0]))


def write_slopes(task: Task, backend: str) -> None:
    """Write the gradient of Σ_e c_e·p_e times the factor."""
    _run(task, _no_results(), _sums(0), SLOPES, backend)


def _sums(experts: int) -> Sums:
    return Sums(np.zeros((experts, LIMBS), np.int64), np.zeros(1, np.int64))


def _no_results() -> Results:
    return Results(np.zeros(0), np.zeros((2, 0)))


def _run(task: Task, results: Results, sums: Sums, step: int, backend: str) -> None:
    counts, tokens = as_writable(task.given.counts), as_writable(task.given.tokens)
    task = task._replace(given=task.given._replace(counts=counts, tokens=tokens))
    if runs_on_gpu(backend):
        from refloss.kernels.routers import gpu

        gpu.run(task, results, sums, step)
        return
    axis, parts = task.logits.ndim - 1, []
    rows = any_rows_of(task.logits, axis)
    gradient = rows if task.gradient is None else any_rows_of(task.gradient, axis)

    def new_sums() -> Sums:
        parts.append(_sums(len(sums.limbs)))
        return parts[-1]

    def work(first: int, last: int, own: Sums) -> None:
        within = task.first + first, task.first + last
        router_rows(rows, gradient, task.given, results, own, step, task.gradient is not None, *within)

    block = max(1, BLOCK_ELEMENTS // max(1, rows.classes))
    parallel.run_blocks(work, task.last - task.first, block, new_sums)
    for part in parts:
        sums.limbs[:] += part.limbs
        sums.undefined[:] += part.undefined
