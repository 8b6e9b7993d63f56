"""Pairs of boxes on a GPU: a thread for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.boxes.loop import COORDINATES, Distances, cotangents_of
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair

if TYPE_CHECKING:
    from refloss.kernels.boxes.loop import BoxLoop, Pairs

_BLOCK = 128


@gpu_function
def _four(memory, start, stride):
    return (
        read(memory, start),
        read(memory, start + stride),
        read(memory, start + 2 * stride),
        read(memory, start + 3 * stride),
    )


@jit.once
def _kernel(loop: BoxLoop) -> Any:
    """The kernel of a description."""
    compare = loop.compare

    @gpu_kernel
    def box_pairs(boxes, gradient, pairs, distances, with_gradient):
        """Row rows[p] of boxes against others[p]."""
        for p in range(cuda.grid(1), pairs.rows.size, cuda.gridsize(1)):
            box = _four(boxes.memory, row_offset(boxes, pairs.rows[p]), boxes.class_stride)
            other = (pairs.others[p, 0], pairs.others[p, 1], pairs.others[p, 2], pairs.others[p, 3])
            found, high, low = compare(box, other, cotangents_of(pairs.coefficients, p), pairs.centered)
            distances.l1[p], distances.giou[p] = found.l1, found.giou
            distances.iou[p], distances.iou_low[p] = found.iou, found.iou_low
            distances.iou_loss[p], distances.giou_loss[p] = found.iou_loss, found.giou_loss
            if with_gradient:
                to = row_offset(gradient, pairs.rows[p])
                for k in range(COORDINATES):
                    store_pair(gradient.memory, to + k * gradient.class_stride, (high[k], low[k]))

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
