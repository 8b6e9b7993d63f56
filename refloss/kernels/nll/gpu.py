"""Negative log-likelihood on a GPU: a thread for each row, where the gradient has been cleared before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_kernel
from refloss.kernels.nll.loop import slope_at_label, value_at_label
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store, store_pair

if TYPE_CHECKING:
    from refloss.kernels.nll.loop import Task, Terms

_BLOCK = 256


@gpu_kernel
def clear(elements, count):
    """0 for every element."""
    for index in range(cuda.grid(1), count, cuda.gridsize(1)):
        store(elements.memory, row_offset(elements, index), 0.0)


@gpu_kernel
def nll_rows(rows, gradient, terms, results, with_gradient):
    """As loop.nll_rows; the losses are the first of the results."""
    loss = results[0]
    for index in range(cuda.grid(1), loss.size, cuda.gridsize(1)):
        label = terms.labels[index]
        if label == terms.ignore_index:
            loss[index] = 0.0
            continue
        loss[index] = value_at_label(
            read(rows.memory, row_offset(rows, index) + label * rows.class_stride), terms.weight[label]
        )
        if with_gradient:
            offset = row_offset(gradient, index) + label * gradient.class_stride
            store_pair(gradient.memory, offset, slope_at_label(terms, index))


def run(task: Task, terms: Terms, loss: np.ndarray) -> None:
    """The losses of rows; the gradient is written into the task's buffer."""
    rows, results = runtime.rows_on_device(task.input, task.class_axis), runtime.Array(loss.shape, loss.dtype)
    gradient, written = rows, None if task.gradient is None else runtime.Gradient(task.gradient)
    if written is not None:
        elements, count = runtime.rows_on_device(written.array, written.array.ndim), written.array.size
        runtime.launch(clear, runtime.grid(count, _BLOCK), _BLOCK, elements, count)
        gradient = runtime.rows_on_device(written.array, task.class_axis)
    blocks = runtime.grid(loss.size, _BLOCK)
    runtime.launch(nll_rows, blocks, _BLOCK, rows, gradient, terms, (results,), written is not None)
    results.download(loss)
    if written is not None:
        written.finish()
