"""Pairs of boxes on a GPU: a thread for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda, float64

from refloss import jit
from refloss.kernels.boxes.loop import COORDINATES, Distances
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair

if TYPE_CHECKING:
    from refloss.kernels.boxes.loop import BoxLoop, Pairs

_BLOCK = 128


@jit.once
def _kernel(loop: BoxLoop) -> Any:
    """The kernel of a description."""
    compare = loop.compare

    @gpu_kernel
    def box_pairs(boxes, gradient, pairs, distances, with_gradient):
        """Row rows[p] of boxes against others[p]."""
        box, result = cuda.local.array(COORDINATES, float64), cuda.local.array((2, COORDINATES), float64)
        for p in range(cuda.grid(1), pairs.rows.size, cuda.gridsize(1)):
            start, to = row_offset(boxes, pairs.rows[p]), row_offset(gradient, pairs.rows[p])
            for k in range(COORDINATES):
                box[k] = read(boxes.memory, start + k * boxes.class_stride)
            shared = pairs.coefficients[p if pairs.coefficients.shape[0] > 1 else 0]
            compare(box, pairs.others[p], shared, pairs.centered, with_gradient, distances, p, result)
            if with_gradient:
                for k in range(COORDINATES):
                    value = (read(result, (0, k)), read(result, (1, k)))
                    store_pair(gradient.memory, to + k * gradient.class_stride, value)

    return box_pairs


def run(loop: BoxLoop, boxes: np.ndarray, gradient: np.ndarray | None, pairs: Pairs) -> Distances:
    """The distances of pairs; the gradient of their rows is written."""
    count = len(pairs.rows)
    results = [runtime.Array(count, np.float64) for _ in Distances._fields]
    source = runtime.rows_on_device(boxes, boxes.ndim - 1)
    # Rows that no pair has keep the gradient that they have.
    written = None if gradient is None else runtime.Gradient(gradient, initial=True)
    destination = source if written is None else runtime.rows_on_device(written.array, boxes.ndim - 1)
    arguments = (source, destination, pairs, Distances._make(results), written is not None)
    runtime.launch(_kernel(loop), runtime.grid(count, _BLOCK), _BLOCK, *arguments)
    if written is not None:
        written.finish()
    return Distances._make(result.download() for result in results)
