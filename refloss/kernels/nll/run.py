"""Negative log-likelihood: from arrays to kernels and back; one element a row is too little work for threads."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from refloss.dispatch import runs_on_gpu
from refloss.kernels.nll.loop import Task, Terms, nll_rows
from refloss.kernels.rows import any_rows_of
from refloss.numerics.exact import as_pair, exact_sum
from refloss.numerics.memory import as_writable
from refloss.numerics.ranges import near_one
from refloss.numerics.shares import divided, divisor, label_normaliser

if TYPE_CHECKING:
    from collections.abc import Callable


def nll_loss(task: Task, backend: str) -> np.float64 | np.ndarray:
    """The reduced loss; the gradient is written into the task's buffer."""
    run = _device(backend)
    labels = np.ascontiguousarray(task.target.reshape(-1), dtype=np.int64)
    if task.reduction == "mean":
        normaliser = label_normaliser(labels, task.weight, task.ignore_index)
    else:
        normaliser = divisor(lambda: Fraction(1), is_mean=False)
    weight = np.ones(task.input.shape[task.class_axis]) if task.weight is None else task.weight
    weight, normaliser, exponent = near_one(weight, normaliser)
    loss = np.empty(labels.size)
    labels, weight, cotangent = map(as_writable, (labels, weight, task.cotangent))
    run(task, Terms(labels, weight, cotangent, as_pair(normaliser), task.ignore_index), loss)
    if task.reduction == "none":
        return (np.ldexp(loss, exponent) if exponent else loss).reshape(task.target.shape)
    return divided(exact_sum(loss), normaliser)


def _device(backend: str) -> Callable[[Task, Terms, np.ndarray], None]:
    if runs_on_gpu(backend):
        from refloss.kernels.nll import gpu

        return gpu.run
    return _run


def _run(task: Task, terms: Terms, loss: np.ndarray) -> None:
    rows = any_rows_of(task.input, task.class_axis)
    gradient = rows
    if task.gradient is not None:
        task.gradient[...] = 0
        gradient = any_rows_of(task.gradient, task.class_axis)
    nll_rows(rows, gradient, terms, loss, task.gradient is not None)
