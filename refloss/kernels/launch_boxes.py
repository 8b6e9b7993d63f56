"""Pairs of boxes on the CPU: from arrays to kernels and back."""

from __future__ import annotations

import numpy as np

from refloss import parallel
from refloss.kernels.boxes import Distances, box_pairs
from refloss.kernels.launch_cross_entropy import divided
from refloss.kernels.rows import any_rows_of
from refloss.numerics.sums import exact_sum

__all__ = ["compare", "divided", "exact_sum"]
BLOCK_PAIRS = 1024


def compare(
    boxes: np.ndarray,
    gradient: np.ndarray | None,
    rows: np.ndarray,
    others: np.ndarray,
    coefficients: np.ndarray,
    *,
    centered: bool,
) -> Distances:
    """Rows [P] of boxes [..., 4] against float64 others [P, 4]; the gradient of these rows is written."""
    distances = Distances(*(np.empty(len(rows)) for _ in Distances._fields))
    source = any_rows_of(boxes, boxes.ndim - 1)
    destination = source if gradient is None else any_rows_of(gradient, gradient.ndim - 1)

    def work(first: int, last: int, _: None) -> None:
        with_gradient = gradient is not None
        box_pairs(source, destination, rows, others, coefficients, centered, distances, with_gradient, first, last)

    parallel.run_blocks(work, len(rows), BLOCK_PAIRS, lambda: None)
    return distances
