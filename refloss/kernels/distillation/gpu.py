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
            highest, total = -np.inf, 0.0
            for c in range(logits.classes):
                value = read(logits.memory, start + c * logits.class_stride)
                teacher.logits[c, index] = value
                highest = larger(value, highest)
            teacher.surest[index] = 0
            for c in range(logits.classes):
                value = read(teacher.logits, (c, index))
                if value == highest:
                    teacher.surest[index] = c
                term = soften(value, highest)
                teacher.probabilities[c, index] = term
                total += term
            for c in range(logits.classes):
                teacher.probabilities[c, index] = read(teacher.probabilities, (c, index)) / total

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


@gpu_function
def _load(logits, start, index, lanes):
    """A row's logits into its lane."""
    for c in range(logits.classes):
        lanes[c, index] = read(logits.memory, start + c * logits.class_stride)


def _divergence(loop: DistillationLoop) -> Any:
    """KL(t ‖ s) of a row; into its lane and the result what its slopes are made of: Φ and 1/(1 + Φ)."""
    largest, plain, divergence = loop.largest, loop.plain, loop.divergence
    distance, with_mean, with_excess = loop.distance, loop.with_mean, loop.with_excess

    @gpu_function
    def of_row(logits, start, index, teacher, lanes):
        c = teacher.surest[index]
        reference = (0.0, 0.0)
        if logits.classes > 0:
            reference = distance(read(logits.memory, start + c * logits.class_stride), teacher.logits[c, index])
        mean, spread, total = 0.0, 0.0, 0.0
        for c in range(logits.classes):
            x = read(logits.memory, start + c * logits.class_stride)
            y, t = teacher.logits[c, index], teacher.probabilities[c, index]
            lanes[c, index], mean, spread = with_mean(x, y, t, reference, mean, spread)
        for c in range(logits.classes):
            growth, total = with_excess(lanes[c, index], teacher.probabilities[c, index], mean, total)
            lanes[c, index] = growth
        value, inverse, limit = divergence(total, spread)
        if total < largest:
            return value, total, inverse, limit
        _load(logits, start, index, lanes)
        value = plain(lanes[:, index], teacher.logits[:, index], teacher.probabilities[:, index])
        return value, 0.0, 1.0, 0.0

    return of_row


@jit.once
def _distil(loop: DistillationLoop) -> Any:
    """The kernel for a layer's rows."""
    divergence, slope, accurate = _divergence(loop), loop.slope, loop.accurate

    @gpu_function
    def save_slopes(gradient, to, index, teacher, weights, lanes, of_row):
        """Write a row's gradient; whether too little is left of some element."""
        _, total, inverse, limit = of_row
        offset, coefficient = weights.offsets[index], weights.coefficients[index]
        close = False
        for c in range(gradient.classes):
            share = teacher.probabilities[c, index]
            value, is_close = slope(lanes[c, index], share, total, inverse, coefficient, limit)
            close = close or is_close
            if offset >= 0:
                value += read(weights.added[offset], c)
            store(gradient.memory, to + c * gradient.class_stride, value)
        return close

    @gpu_kernel
    def distil(logits, gradient, teacher, weights, scratch, with_gradient):
        lanes = scratch.lanes
        for index in range(cuda.grid(1), scratch.values.size, cuda.gridsize(1)):
            start, to = row_offset(logits, index), row_offset(gradient, index)
            of_row = divergence(logits, start, index, teacher, lanes)
            scratch.values[index] = read(weights.weights, index) * of_row[0]
            if with_gradient and save_slopes(gradient, to, index, teacher, weights, lanes, of_row):
                _load(logits, start, index, lanes)
                accurate(lanes[:, index], teacher.logits[:, index])
                # Of s − t its slope is itself, with Φ = 0.
                save_slopes(gradient, to, index, teacher, weights, lanes, (0.0, 0.0, 1.0, 0.0))

    return distil


def teacher_of(loop: DistillationLoop, logits: np.ndarray) -> Teacher:
    """What the rows of logits [..., C] teach; it stays on the GPU."""
    rows = runtime.rows_on_device(logits, logits.ndim - 1)
    count = logits.size // max(1, rows.classes)
    shape = (rows.classes, count)
    memory: list[Any] = [runtime.Array(shape, np.float64), runtime.Array(shape, np.float64)]
    teacher = Teacher(*memory, runtime.Array(count, np.int64))
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
