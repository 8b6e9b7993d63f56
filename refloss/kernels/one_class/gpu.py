"""Sigmoid losses of rows with one positive class on a GPU: a thread for every element."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import cuda

from refloss import jit
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.accumulate import add_value, block_totals, exact_total, merge, new_state, new_totals
from refloss.kernels.gpu.jit import gpu_kernel
from refloss.kernels.one_class.loop import quality_of, times_coefficient
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair

if TYPE_CHECKING:
    import numpy as np

    from refloss.kernels.one_class.loop import Focus, OneClassLoop, Positives
    from refloss.numerics.exact import Exact

_BLOCK = 256


@jit.once
def _kernel(loop: OneClassLoop) -> Any:
    """The kernel of a loss."""
    negative, positive = loop.negative, loop.positive

    @gpu_kernel
    def kernel(logits, gradient, classes, positives, focus, coefficient, with_gradient, totals):
        state, of_block = new_state(), block_totals()
        for index in range(cuda.grid(1), positives.labels.size * classes, cuda.gridsize(1)):
            row = index // classes
            x = read(logits.memory, row_offset(logits, index))
            if index - row * classes == positives.labels[row]:
                value, derivative = positive(x, quality_of(positives, row), focus)
            else:
                value, derivative = negative(x, focus)
            state = add_value(value, state, of_block)
            if with_gradient:
                product = times_coefficient(derivative, coefficient)
                store_pair(gradient.memory, row_offset(gradient, index), product)
        merge(state, of_block, totals)

    return kernel


def run(
    loop: OneClassLoop,
    logits: np.ndarray,
    gradient: np.ndarray | None,
    positives: Positives,
    focus: Focus,
    coefficient: tuple[float, float],
) -> Exact:
    """Σ over all classes of logits [..., C]; its gradient times a coefficient is written."""
    source = runtime.rows_on_device(logits, logits.ndim)
    written = None if gradient is None else runtime.Gradient(gradient)
    destination = source if written is None else runtime.rows_on_device(written.array, logits.ndim)
    totals, blocks = new_totals(), runtime.grid(logits.size, _BLOCK)
    scalars = (positives, focus, coefficient, written is not None)
    runtime.launch(_kernel(loop), blocks, _BLOCK, source, destination, logits.shape[-1], *scalars, totals)
    if written is not None:
        written.finish()
    return exact_total(totals)
