"""Distillation on a GPU: kernels.distillation.loop with a thread for each row, class by class in the CPU's order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss import jit
from refloss.kernels.distillation.loop import Teacher, probability
from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import bounds, magnitude_at, ordinal_at, read, store, value_of
from refloss.numerics.pairs import two_sum

if TYPE_CHECKING:
    from refloss.kernels.distillation.loop import DistillationLoop, RowWeights

_BLOCK = 128


class Scratch(NamedTuple):
    """What the rows of a layer are worked out in."""

    lanes: Any  # [C, R] float64
    values: Any  # [R] float64, the losses


class Highest(NamedTuple):
    """The highest probability of each row."""

    values: Any  # [R] float64


@jit.once
def _teach(loop: DistillationLoop) -> Any:
    """The kernel for a teacher's rows."""
    larger, soften = loop.larger, loop.soften

    @gpu_kernel
    def teach(logits, teacher, count):
        for index in range(cuda.grid(1), count, cuda.gridsize(1)):
            start = row_offset(logits, index)
            highest, total, total_low = -np.inf, 0.0, 0.0
            for c in range(logits.classes):
                value = read(logits.memory, start + c * logits.class_stride)
                teacher.logits[c, index] = value
                highest = larger(value, highest)
            for c in range(logits.classes):
                term = soften(teacher.logits[c, index], highest)
                teacher.probabilities[c, index] = term
                total, low = two_sum(total, term)
                total_low += low
            for c in range(logits.classes):
                teacher.probabilities[c, index] = read(teacher.probabilities, (c, index)) / (total + total_low)

    return teach


@gpu_kernel
def _highest_probabilities(logits, result):
    """σ of the largest logit of each row; NaN if there is one."""
    lowest, infinity = bounds(logits.memory)
    for index in range(cuda.grid(1), result.values.size, cuda.gridsize(1)):
        start = row_offset(logits, index)
        highest, largest = lowest, infinity
        for c in range(logits.classes):
            here = ordinal_at(logits.memory, start + c * logits.class_stride)
            highest = here if here > highest else highest
            size = magnitude_at(logits.memory, start + c * logits.class_stride)
            largest = size if size > largest else largest
        result.values[index] = probability(value_of(highest, logits.memory)) if largest <= infinity else np.nan


def _divergence(loop: DistillationLoop) -> Any:
    """KL(t ‖ s) of a row; into its lane and the result what its slopes are made of: Φ and 1/(1 + Φ)."""
    largest, plain, divergence = loop.largest, loop.plain, loop.divergence
    with_reference, with_mean, with_excess = loop.with_reference, loop.with_mean, loop.with_excess
    is_close, accurate = loop.is_close, loop.accurate

    @gpu_function
    def of_row(logits, start, index, teacher, lanes):
        best, reference = -1.0, (0.0, 0.0)
        for c in range(logits.classes):
            x = read(logits.memory, start + c * logits.class_stride)
            y, t = teacher.logits[c, index], teacher.probabilities[c, index]
            best, reference = with_reference(x, y, t, best, reference)
        mean, spread, total = 0.0, 0.0, 0.0
        for c in range(logits.classes):
            x = read(logits.memory, start + c * logits.class_stride)
            y, t = teacher.logits[c, index], teacher.probabilities[c, index]
            far, mean, spread = with_mean(x, y, t, reference, mean, spread)
            lanes[c, index] = far
        for c in range(logits.classes):
            growth, total = with_excess(lanes[c, index], teacher.probabilities[c, index], mean, total)
            lanes[c, index] = growth
        value, inverse = divergence(total)
        close = 0
        for c in range(logits.classes):
            close += 1 if is_close(lanes[c, index], teacher.probabilities[c, index], total, spread) else 0
        if total < largest and close == 0:
            return value, total, inverse
        for c in range(logits.classes):
            lanes[c, index] = read(logits.memory, start + c * logits.class_stride)
        if total < largest:
            accurate(lanes[:, index], teacher.logits[:, index])
        else:
            value = plain(lanes[:, index], teacher.logits[:, index], teacher.probabilities[:, index])
        return value, 0.0, 1.0

    return of_row


@jit.once
def _distil(loop: DistillationLoop) -> Any:
    """The kernel for a layer's rows."""
    divergence, slope = _divergence(loop), loop.slope

    @gpu_kernel
    def distil(logits, gradient, teacher, weights, scratch, with_gradient):
        for index in range(cuda.grid(1), scratch.values.size, cuda.gridsize(1)):
            start, to = row_offset(logits, index), row_offset(gradient, index)
            value, total, inverse = divergence(logits, start, index, teacher, scratch.lanes)
            scratch.values[index] = read(weights.weights, index) * value
            if with_gradient:
                offset, coefficient = weights.offsets[index], weights.coefficients[index]
                for c in range(logits.classes):
                    share = teacher.probabilities[c, index]
                    value = slope(scratch.lanes[c, index], share, total, inverse, coefficient)
                    if offset >= 0:
                        value += read(weights.added[offset], c)
                    store(gradient.memory, to + c * gradient.class_stride, value)

    return distil


def teacher_of(loop: DistillationLoop, logits: np.ndarray) -> Teacher:
    """What the rows of logits [..., C] teach; it stays on the GPU."""
    rows = runtime.rows_on_device(logits, logits.ndim - 1)
    count = logits.size // max(1, rows.classes)
    memory: list[Any] = [runtime.Array((rows.classes, count), np.float64) for _ in Teacher._fields]
    teacher = Teacher(*memory)
    runtime.launch(_teach(loop), runtime.grid(count, _BLOCK), _BLOCK, rows, teacher, count)
    return teacher


def highest(logits: np.ndarray) -> np.ndarray:
    """The highest probability σ(x) of each row of logits [..., C]."""
    result = runtime.Array(int(np.prod(logits.shape[:-1], dtype=np.int64)), np.float64)
    rows = runtime.rows_on_device(logits, logits.ndim - 1)
    count = result.memory.size
    runtime.launch(_highest_probabilities, runtime.grid(count, _BLOCK), _BLOCK, rows, Highest(result))
    return result.download().reshape(logits.shape[:-1])


def distillation(
    loop: DistillationLoop, logits: np.ndarray, gradient: np.ndarray | None, teacher: Teacher, weights: RowWeights
) -> np.ndarray:
    """The weighted loss of each row of logits [..., C]; their gradient is written."""
    rows = runtime.rows_on_device(logits, logits.ndim - 1)
    written = None if gradient is None else runtime.Gradient(gradient)
    destination = rows if written is None else runtime.rows_on_device(written.array, logits.ndim - 1)
    count = weights.weights.size
    scratch = Scratch(runtime.Array((rows.classes, count), np.float64), runtime.Array(count, np.float64))
    arguments = (rows, destination, teacher, weights, scratch, written is not None)
    runtime.launch(_distil(loop), runtime.grid(count, _BLOCK), _BLOCK, *arguments)
    if written is not None:
        written.finish()
    values: np.ndarray = scratch.values.download()
    return values
