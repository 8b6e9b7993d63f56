"""Distillation: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.distillation.loop import (
    LANES,
    ROWS,
    DistillationLoop,
    RowWeights,
    Teacher,
    distil,
    highest_probabilities,
    teach,
)
from refloss.kernels.rows import any_rows_of

BLOCK_ROWS = 8 * ROWS
_HIGHEST_ROWS = 32


def teacher_of(loop: DistillationLoop, logits: np.ndarray, backend: str) -> Teacher:
    """What the rows of logits [..., C] teach; on a GPU it stays there."""
    if runs_on_gpu(backend):
        from refloss.kernels.distillation import gpu

        return gpu.teacher_of(loop, logits)
    rows = any_rows_of(logits, logits.ndim - 1)
    count = logits.size // max(1, rows.classes)
    shape = (rows.classes, count)
    teacher = Teacher(np.empty(shape), np.empty(shape), np.empty(count, np.int64))
    kernel = teach(loop)

    def work(first: int, last: int, scratch: np.ndarray) -> None:
        kernel(rows, teacher, scratch, first, last)

    parallel.run_blocks(work, count, BLOCK_ROWS, lambda: np.empty((3, ROWS)))
    return teacher


def highest(logits: np.ndarray, backend: str) -> np.ndarray:
    """The highest probability σ(x) of each row of logits [..., C]."""
    if runs_on_gpu(backend):
        from refloss.kernels.distillation import gpu

        return gpu.highest(logits)
    rows = any_rows_of(logits, logits.ndim - 1)
    result = np.empty(logits.shape[:-1])
    flat = result.reshape(-1)

    def work(first: int, last: int, block: np.ndarray) -> None:
        highest_probabilities(rows, flat, block, first, last)

    parallel.run_blocks(work, flat.size, BLOCK_ROWS, lambda: np.empty(_HIGHEST_ROWS * max(1, rows.classes)))
    return result


def distillation(
    loop: DistillationLoop,
    logits: np.ndarray,
    gradient: np.ndarray | None,
    teacher: Teacher,
    weights: RowWeights,
    backend: str,
) -> np.ndarray:
    """The weighted loss of each row of logits [..., C]; their gradient is written."""
    if runs_on_gpu(backend):
        from refloss.kernels.distillation import gpu

        return gpu.distillation(loop, logits, gradient, teacher, weights)
    rows = any_rows_of(logits, logits.ndim - 1)
    destination = rows if gradient is None else any_rows_of(gradient, gradient.ndim - 1)
    values = np.empty(weights.weights.size)
    kernel, with_gradient = distil(loop), gradient is not None

    def scratch() -> tuple[np.ndarray, np.ndarray]:
        return np.empty((rows.classes, ROWS)), np.empty(LANES)

    def work(first: int, last: int, buffers: tuple[np.ndarray, np.ndarray]) -> None:
        kernel(rows, destination, teacher, weights, *buffers, values, with_gradient, first, last)

    parallel.run_blocks(work, values.size, BLOCK_ROWS, scratch)
    return values
