"""Pairs of boxes: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.boxes.loop import BoxLoop, Distances, Pairs, compiled
from refloss.kernels.rows import any_rows_of
from refloss.numerics.memory import as_writable

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_PAIRS = 1024


def compare(
    loop: BoxLoop,
    boxes: np.ndarray,
    gradient: np.ndarray | None,
    rows: np.ndarray,
    others: np.ndarray,
    coefficients: np.ndarray,
    *,
    centered: bool,
    backend: str,
) -> Distances:
    """Rows [P] of boxes [..., 4] against float64 others [P, 4]; the gradient of these rows is written."""
    return _device(backend)(loop, boxes, gradient, Pairs(rows, as_writable(others), coefficients, centered))


def _device(backend: str) -> Callable[[BoxLoop, np.ndarray, np.ndarray | None, Pairs], Distances]:
    if runs_on_gpu(backend):
        from refloss.kernels.boxes import gpu

        return gpu.run
    return _run


def _run(loop: BoxLoop, boxes: np.ndarray, gradient: np.ndarray | None, pairs: Pairs) -> Distances:
    count = len(pairs.rows)
    distances = Distances(*(np.empty(count) for _ in Distances._fields))
    source = any_rows_of(boxes, boxes.ndim - 1)
    destination = source if gradient is None else any_rows_of(gradient, gradient.ndim - 1)
    kernel, with_gradient = compiled(loop), gradient is not None

    def work(first: int, last: int, _: None) -> None:
        kernel(source, destination, pairs, distances, with_gradient, first, last)

    parallel.run_blocks(work, count, BLOCK_PAIRS, lambda: None)
    return distances
