"""Terms of flow matching on a GPU: a thread for each row, which reads its residuals as often as it needs them.

What several rows give to one row of z is added by a thread for each number of z, in the order of the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from refloss.kernels.flow.loop import (
    Terms,
    exponent_above,
    residual,
    size_bits,
    slope_factor,
    square,
    times_slope,
    unless_nothing,
    weighed,
)
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import INFINITY_BITS, read, store_pair
from refloss.numerics.pairs import add, negate, pair, scaled, two_sum

if TYPE_CHECKING:
    from refloss.kernels.flow.run import Sums

_BLOCK = 128


@gpu_function
def _read(rows, index):
    return read(rows.memory, row_offset(rows, index))


@gpu_function
def _residual(terms, row, frame, k, step):
    x = read(terms.x.memory, row_offset(terms.x, row) + k * terms.x.class_stride)
    y = read(terms.y.memory, row_offset(terms.y, row) + k * terms.y.class_stride)
    z = read(terms.z.memory, row_offset(terms.z, frame) + k * terms.z.class_stride)
    return residual(x, y, z, step)


@gpu_function
def _step(terms, row):
    return two_sum(_read(terms.end, row), -_read(terms.start, row))


@gpu_function
def _length(terms, row, frame, step):
    """As loop._length."""
    size, largest, total = terms.x.classes, 0, pair(0.0)
    for k in range(size):
        bits = size_bits(_residual(terms, row, frame, k, step))
        largest = bits if bits > largest else largest
    if largest >= INFINITY_BITS:
        for k in range(size):
            high = _residual(terms, row, frame, k, step)[0]
            total = pair(total[0] + high * high)
        return total, 0
    exponent = exponent_above(largest)
    for k in range(size):
        total = add(total, square(_residual(terms, row, frame, k, step), exponent))
    return total, 2 * exponent


@gpu_function
def _along(terms, row, frame, step):
    """As loop._along."""
    total, largest = pair(0.0), 0.0
    for k in range(terms.x.classes):
        y = read(terms.y.memory, row_offset(terms.y, row) + k * terms.y.class_stride)
        term = scaled(_residual(terms, row, frame, k, step), pair(y))
        total = add(total, term)
        largest += abs(term[0])
    return unless_nothing(total, largest)


@gpu_kernel
def flow_rows(terms, slopes, wanted, coefficient, frames, results):
    """Values and gradients of rows, and in results what each row's residuals are multiplied by."""
    for row in range(cuda.grid(1), results[0].size, cuda.gridsize(1)):
        frame, step = row % frames, _step(terms, row)
        length, exponent = _length(terms, row, frame, step)
        found = weighed(length, exponent, np.float64(terms.x.classes), _read(terms.log_variance, row))
        results[0][row], results[1][row] = found.value
        factor, of_factor = slope_factor(found.factor, found.exponent, coefficient)
        results[2][row], results[3][row] = factor
        results[4][row] = of_factor
        if wanted.log_variance:
            to = row_offset(slopes.log_variance, row)
            store_pair(slopes.log_variance.memory, to, scaled(found.slope, coefficient))
        for k in range(terms.x.classes if wanted.x or wanted.y else 0):
            difference = _residual(terms, row, frame, k, step)
            if wanted.x:
                to = row_offset(slopes.x, row) + k * slopes.x.class_stride
                store_pair(slopes.x.memory, to, times_slope(difference, factor, of_factor))
            if wanted.y:
                to = row_offset(slopes.y, row) + k * slopes.y.class_stride
                store_pair(slopes.y.memory, to, times_slope(difference, scaled(factor, step), of_factor))
        if wanted.start or wanted.end:
            along = times_slope(_along(terms, row, frame, step), factor, of_factor)
            if wanted.end:
                store_pair(slopes.end.memory, row_offset(slopes.end, row), along)
            if wanted.start:
                store_pair(slopes.start.memory, row_offset(slopes.start, row), negate(along))


@gpu_kernel
def flow_sums(terms, slopes, samples, frames, results):
    """The gradient of z, a sum over its rows."""
    size = terms.z.classes
    for index in range(cuda.grid(1), frames * size, cuda.gridsize(1)):
        frame, k = index // size, index % size
        total, largest = pair(0.0), 0.0
        for sample in range(samples):
            row = sample * frames + frame
            factor = negate((results[2][row], results[3][row]))
            difference = _residual(terms, row, frame, k, _step(terms, row))
            term = times_slope(difference, factor, results[4][row])
            total = term if sample == 0 else add(total, term)
            largest = abs(term[0]) if sample == 0 else largest + abs(term[0])
        to = row_offset(slopes.z, frame) + k * slopes.z.class_stride
        store_pair(slopes.z.memory, to, unless_nothing(total, largest))


def run(sums: Sums) -> None:
    """Values of rows, and the gradients that are wanted."""
    arrays = sums.arrays
    assert arrays.x is not None
    assert arrays.z is not None
    count, frames = len(arrays.x), len(arrays.z)
    written = [None if buffer is None else runtime.Gradient(buffer) for buffer in sums.gradients]
    read = Terms(*(_rows(array, (count,)) for array in arrays))
    slopes = Terms(
        *(
            source if buffer is None else _rows(buffer.array, (count,))
            for buffer, source in zip(written, read, strict=True)
        )
    )
    types = (np.float64, np.float64, np.float64, np.float64, np.int64)
    results = tuple(runtime.Array(count, dtype) for dtype in types)
    arguments = (read, slopes, sums.wanted, sums.coefficient, frames, results)
    runtime.launch(flow_rows, runtime.grid(count, _BLOCK), _BLOCK, *arguments)
    if sums.wanted.z and count:
        work = runtime.grid(frames * arrays.z.shape[1], _BLOCK)
        runtime.launch(flow_sums, work, _BLOCK, read, slopes, count // frames, frames, results)
    results[0].download(sums.values)
    results[1].download(sums.values_low)
    for buffer in written:
        if buffer is not None:
            buffer.finish()


def _rows(array: Any, shape: tuple[int, ...]) -> Any:
    if array.ndim == 2:
        return runtime.rows_on_device(array, 1)
    return runtime.rows_on_device(np.broadcast_to(array, shape, subok=True), 1)
