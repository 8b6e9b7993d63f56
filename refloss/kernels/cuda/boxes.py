"""Pairs of boxes on a GPU: a thread for each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import cuda, float64

from refloss.kernels.boxes import COORDINATES, Distances, compare_boxes
from refloss.kernels.cuda import runtime
from refloss.kernels.cuda.gpu_jit import gpu_kernel
from refloss.kernels.launch_boxes import divided, exact_sum
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store

__all__ = ["compare", "divided", "exact_sum"]
_BLOCK = 128


class Pairs(NamedTuple):
    """Rows of boxes, what they are compared with, and cotangents, as the CPU's kernel takes them."""

    rows: np.ndarray  # [P] int64
    others: np.ndarray  # [P, 4] float64
    coefficients: np.ndarray  # [P or 1, 3]


@gpu_kernel
def box_pairs(boxes, gradient, pairs, centered, distances, with_gradient):
    """Row rows[p] of boxes against others[p]."""
    box, result = cuda.local.array(COORDINATES, float64), cuda.local.array(COORDINATES, float64)
    for p in range(cuda.grid(1), pairs.rows.size, cuda.gridsize(1)):
        start, to = row_offset(boxes, pairs.rows[p]), row_offset(gradient, pairs.rows[p])
        for k in range(COORDINATES):
            box[k] = read(boxes.memory, start + k * boxes.class_stride)
        shared = pairs.coefficients[p if pairs.coefficients.shape[0] > 1 else 0]
        compare_boxes(box, pairs.others[p], shared, centered, distances, p, result)
        if with_gradient:
            for k in range(COORDINATES):
                store(gradient.memory, to + k * gradient.class_stride, result[k])


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
    results = [runtime.Array(len(rows), np.float64) for _ in Distances._fields]
    source = runtime.rows_on_device(boxes, boxes.ndim - 1)
    # Rows that no pair has keep the gradient that they have.
    written = None if gradient is None else runtime.Gradient(gradient, initial=True)
    destination = source if written is None else runtime.rows_on_device(written.array, boxes.ndim - 1)
    arguments = (Pairs(rows, others, coefficients), centered, Distances._make(results), written is not None)
    runtime.launch(box_pairs, runtime.grid(len(rows), _BLOCK), _BLOCK, source, destination, *arguments)
    if written is not None:
        written.finish()
    return Distances._make(result.download() for result in results)
