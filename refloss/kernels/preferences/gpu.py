"""Pairs of sequences on a GPU: a thread for each, with the helper of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.preferences.loop import PreferenceLoop, coefficient_of, difference
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair
from refloss.numerics.pairs import normalised, scaled

if TYPE_CHECKING:
    from refloss.kernels.preferences.run import Task

_BLOCK = 64


@gpu_function
def _load(rows, index):
    return read(rows.memory, row_offset(rows, index))


@gpu_function
def _save(slope, coefficient, gradient, index):
    store_pair(gradient.memory, row_offset(gradient, index), scaled(slope, coefficient))


@jit.once
def _kernel(loop: PreferenceLoop) -> Any:
    """The kernel of a description."""
    of_pair = loop.of_pair

    @gpu_kernel
    def preference_pairs(rows, gradients, wanted, given, losses):
        # No loop: what it would keep in registers, constants of exponentials and logarithms, are too many.
        index = cuda.grid(1)
        if index < losses.shape[1]:
            chosen = difference(_load(rows[0], index), _load(rows[2], index))
            rejected = difference(_load(rows[1], index), _load(rows[3], index))
            value, for_chosen, for_rejected = of_pair(chosen, rejected, given.parameters)
            losses[0, index], losses[1, index] = normalised(value)
            coefficient = coefficient_of(given, index)
            if wanted[0]:
                _save(for_chosen, coefficient, gradients[0], index)
            if wanted[1]:
                _save(for_rejected, coefficient, gradients[1], index)

    return preference_pairs


def _elements(array: np.ndarray, shape: tuple[int, ...]) -> Any:
    return runtime.rows_on_device(np.broadcast_to(array, shape, subok=True), len(shape))


def run(task: Task) -> np.ndarray:
    """The losses of the pairs, pairs; gradients are written."""
    shape, count = task.inputs[0].shape, task.inputs[0].size
    rows = tuple(_elements(array, shape) for array in task.inputs)
    buffers = [None if buffer is None else runtime.Gradient(buffer) for buffer in task.gradients]
    written = tuple(
        rows[k] if buffer is None else _elements(buffer.array, buffer.array.shape) for k, buffer in enumerate(buffers)
    )
    wanted = tuple(buffer is not None for buffer in buffers)
    losses = runtime.Array((2, count), np.float64)
    arguments = (rows, written, wanted, task.given, losses)
    blocks = -(-count // min(_BLOCK, runtime.LARGEST_BLOCK))
    runtime.launch(_kernel(task.loop), blocks, _BLOCK, *arguments)
    for buffer in buffers:
        if buffer is not None:
            buffer.finish()
    return losses.download()
