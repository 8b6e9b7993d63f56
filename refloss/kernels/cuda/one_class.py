"""Classification losses of rows with one class on a GPU: a thread for every element."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.cuda import runtime
from refloss.kernels.cuda.accumulate import add_value, block_totals, exact_total, merge, new_state, new_totals
from refloss.kernels.cuda.gpu_jit import gpu_kernel
from refloss.kernels.launch_cross_entropy import divided
from refloss.kernels.launch_one_class import coefficient_of, meant
from refloss.kernels.one_class import Focus, Meant, OneClassLoop, quality_of
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store
from refloss.numerics.pairs import times

__all__ = ["Focus", "Meant", "meant", "one_class"]
_BLOCK = 256


@jit.once
def _kernel(loop: OneClassLoop) -> Any:
    """The kernel of a loss."""
    other, own = loop.other, loop.own

    @gpu_kernel
    def kernel(logits, gradient, classes, meant, focus, coefficient, with_gradient, totals):
        state, shared = new_state(), block_totals()
        for index in range(cuda.grid(1), meant.labels.size * classes, cuda.gridsize(1)):
            row = index // classes
            x = read(logits.memory, row_offset(logits, index))
            if index - row * classes == meant.labels[row]:
                value, derivative = own(x, quality_of(meant, row), focus)
            else:
                value, derivative = other(x, focus)
            state = add_value(value, state, shared)
            if with_gradient:
                store(gradient.memory, row_offset(gradient, index), times(derivative, coefficient))
        merge(state, shared, totals)

    return kernel


def one_class(
    loop: OneClassLoop,
    logits: np.ndarray,
    gradient: np.ndarray | None,
    meant: Meant,
    focus: Focus,
    *,
    cotangent: float,
    divisor: float,
) -> np.float64:
    """Σ over all classes of logits [..., C] / divisor; its gradient times the cotangent is written."""
    source = runtime.rows_on_device(logits, logits.ndim)
    written = None if gradient is None else runtime.Gradient(gradient)
    destination = source if written is None else runtime.rows_on_device(written.array, logits.ndim)
    totals, blocks = new_totals(), runtime.grid(logits.size, _BLOCK)
    scalars = (meant, focus, coefficient_of(cotangent, divisor), written is not None)
    runtime.launch(_kernel(loop), blocks, _BLOCK, source, destination, logits.shape[-1], *scalars, totals)
    if written is not None:
        written.finish()
    return divided(exact_total(totals), Fraction(divisor))
