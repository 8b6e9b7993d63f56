"""Elementwise losses on a GPU: the loop of kernels.elementwise.loop, a thread for every element."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.elementwise.loop import Loop, Outputs, Pass, above_mean, is_far, times_all, times_far
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.accumulate import add_value, block_totals, exact_total, merge, new_state, new_totals
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair
from refloss.numerics.pairs import normalised, scaled

if TYPE_CHECKING:
    from refloss.numerics.exact import Exact

_BLOCK = 256


@gpu_function
def _load(rows, index):
    return read(rows.memory, row_offset(rows, index))


@gpu_function
def _scaled(derivative, weight, cotangent, steepness, scalars):
    if is_far(derivative, weight, cotangent, scalars):
        return times_far(derivative, weight, cotangent, steepness, scalars)
    return times_all(derivative, weight, cotangent, steepness, scalars)


@gpu_function
def _save_gradient(derivative, weight, cotangent, scalars, rows, index):
    if scalars.coefficient[0] != 0.0:
        value = scaled(derivative, scalars.coefficient)
    else:
        value = _scaled(derivative, weight, cotangent, scalars.steepness, scalars)
    store_pair(rows.memory, row_offset(rows, index), value)


def _refinement(loop: Loop) -> Any:
    """What computes an element again of which too few digits are left."""
    is_close, accurate = loop.is_close, loop.accurate
    if is_close is None or accurate is None:

        @gpu_function
        def refined(_x, _t, _factor, _parameters, value, for_input, for_target):
            return value, for_input, for_target
    else:

        @gpu_function
        def refined(x, t, factor, parameters, value, for_input, for_target):
            close = is_close(x, t, factor, parameters, value[0], for_input[0], for_target[0])
            if close[0] or close[1] or close[2]:
                again = accurate(x, t, factor, parameters)
                value = again[0] if close[0] else value
                for_input = again[1] if close[1] else for_input
                for_target = again[2] if close[2] else for_target
            return value, for_input, for_target

    return refined


@jit.once
def _kernel(loop: Loop) -> Any:
    """The kernel of a loss."""
    loss, refined = loop.loss, _refinement(loop)

    @gpu_kernel
    def kernel(inputs, outputs, wanted, scalars, totals, count):
        state, of_block = new_state(), block_totals()
        for index in range(cuda.grid(1), count, cuda.gridsize(1)):
            x, t, factor = _load(inputs.input, index), _load(inputs.target, index), _load(inputs.factor, index)
            value, for_input, for_target = loss(x, t, factor, scalars.parameters)
            value = normalised(value)
            value, for_input, for_target = refined(x, t, factor, scalars.parameters, value, for_input, for_target)
            # Not before: registers are scarce.
            weight, cotangent = _load(inputs.weight, index), _load(inputs.cotangent, index)
            if wanted.input_gradient:
                _save_gradient(for_input, weight, cotangent, scalars, outputs.input_gradient, index)
            if wanted.target_gradient:
                _save_gradient(for_target, weight, cotangent, scalars, outputs.target_gradient, index)
            if wanted.weight_gradient:
                above = _scaled(above_mean(value, scalars.mean), 1.0, cotangent, 1.0, scalars)
                store_pair(outputs.weight_gradient.memory, row_offset(outputs.weight_gradient, index), above)
            value = scaled(value, (weight, 0.0)) if scalars.weighted else value
            if wanted.loss:
                store_pair(outputs.loss.memory, row_offset(outputs.loss, index), value)
            if wanted.whole_total:
                state = add_value(value[1], state, of_block)
            if wanted.total:
                state = add_value(value[0], state, of_block)
        merge(state, of_block, totals)

    return kernel


def _elements(array: np.ndarray, shape: tuple[int, ...]) -> Any:
    return runtime.rows_on_device(np.broadcast_to(array, shape, subok=True), len(shape))


def run(this: Pass) -> Exact:
    """Run a pass; the sum of the elements' values."""
    task = this.task
    written = [None if buffer is None else runtime.Gradient(buffer) for buffer in this.buffers]
    stand_in = np.empty(task.input.shape[:0])
    arrays = (stand_in if buffer is None else buffer.array for buffer in written)
    outputs = Outputs(*(_elements(array, array.shape) for array in arrays))
    totals, count = new_totals(), task.input.size
    inputs = task.inputs(_elements)
    blocks = runtime.grid(count, _BLOCK)
    runtime.launch(_kernel(task.loop), blocks, _BLOCK, inputs, outputs, this.wanted, this.scalars, totals, count)
    for buffer in written:
        if buffer is not None:
            buffer.finish()
    return exact_total(totals)
