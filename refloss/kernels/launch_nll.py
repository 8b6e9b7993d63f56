"""Negative log-likelihood on the CPU; one element a row is too little work for threads."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.kernels.launch_cross_entropy import divided, label_normaliser
from refloss.kernels.nll import Terms, nll_rows
from refloss.kernels.rows import any_rows_of
from refloss.numerics.sums import as_pair, exact_sum

if TYPE_CHECKING:
    from collections.abc import Callable


class Task(NamedTuple):
    """A negative log-likelihood as its loss states it."""

    input: np.ndarray
    target: np.ndarray
    class_axis: int
    weight: np.ndarray | None
    ignore_index: int
    reduction: str
    cotangent: np.ndarray
    gradient: np.ndarray | None


def nll(task: Task) -> np.float64 | np.ndarray:
    """The reduced loss; the gradient is written into the task's buffer."""
    return evaluate(task, _run)


def evaluate(task: Task, run: Callable[[Task, Terms, np.ndarray], None]) -> np.float64 | np.ndarray:
    """Run a task's rows, and what comes before and after them."""
    labels = np.ascontiguousarray(task.target.reshape(-1), dtype=np.int64)
    normaliser: Fraction | float = Fraction(1)
    if task.reduction == "mean":
        normaliser = label_normaliser(labels, task.weight, task.ignore_index)
    weight = np.ones(task.input.shape[task.class_axis]) if task.weight is None else task.weight
    loss = np.empty(labels.size)
    run(task, Terms(labels, weight, task.cotangent, as_pair(normaliser), task.ignore_index), loss)
    return loss.reshape(task.target.shape) if task.reduction == "none" else divided(exact_sum(loss), normaliser)


def _run(task: Task, terms: Terms, loss: np.ndarray) -> None:
    rows = any_rows_of(task.input, task.class_axis)
    gradient = rows
    if task.gradient is not None:
        task.gradient[...] = 0
        gradient = any_rows_of(task.gradient, task.class_axis)
    nll_rows(rows, gradient, terms, loss, task.gradient is not None)
