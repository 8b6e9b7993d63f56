"""Distillation on the CPU: from arrays to kernels and back."""

from __future__ import annotations

import numpy as np

from refloss import parallel
from refloss.kernels.distillation import ROWS, Teacher, Wanted, distil, highest_probabilities, teach
from refloss.kernels.launch_cross_entropy import total
from refloss.kernels.rows import any_rows_of

__all__ = ["Teacher", "Wanted", "distillation", "highest", "teacher", "total"]
BLOCK_ROWS = 16 * ROWS
_HIGHEST_ROWS = 32


def teacher(logits: np.ndarray) -> Teacher:
    """What the rows of logits [..., C] teach."""
    rows = any_rows_of(logits, logits.ndim - 1)
    count = logits.size // max(1, rows.classes)
    result = Teacher(*(np.empty((rows.classes, count)) for _ in Teacher._fields))

    def work(first: int, last: int, room: np.ndarray) -> None:
        teach(rows, result, room, first, last)

    parallel.run_blocks(work, count, BLOCK_ROWS, lambda: np.empty((3, ROWS)))
    return result


def highest(logits: np.ndarray) -> np.ndarray:
    """The highest probability σ(x) of each row of logits [..., C]."""
    rows = any_rows_of(logits, logits.ndim - 1)
    result = np.empty(logits.shape[:-1])
    flat = result.reshape(-1)

    def work(first: int, last: int, block: np.ndarray) -> None:
        highest_probabilities(rows, flat, block, first, last)

    parallel.run_blocks(work, flat.size, BLOCK_ROWS, lambda: np.empty(_HIGHEST_ROWS * max(1, rows.classes)))
    return result


def distillation(logits: np.ndarray, gradient: np.ndarray | None, teacher: Teacher, wanted: Wanted) -> np.ndarray:
    """The weighted loss of each row of logits [..., C]; their gradient is written."""
    rows = any_rows_of(logits, logits.ndim - 1)
    destination = rows if gradient is None else any_rows_of(gradient, gradient.ndim - 1)
    values = np.empty(wanted.weights.size)

    def scratch() -> tuple[np.ndarray, np.ndarray]:
        return np.empty((rows.classes, ROWS)), np.empty((3, ROWS))

    def work(first: int, last: int, buffers: tuple[np.ndarray, np.ndarray]) -> None:
        with_gradient = gradient is not None
        distil(rows, destination, teacher, wanted, *buffers, values, with_gradient, first, last)

    parallel.run_blocks(work, values.size, BLOCK_ROWS, scratch)
    return values
