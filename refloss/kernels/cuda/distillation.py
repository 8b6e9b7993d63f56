"""Distillation on a GPU: kernels.distillation with a thread for each row, class by class in the CPU's order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.cuda import runtime
from refloss.kernels.cuda.gpu_jit import gpu_function, gpu_kernel
from refloss.kernels.distillation import (
    LARGEST,
    Teacher,
    Wanted,
    divergence_of,
    larger,
    plain_divergence,
    probability,
    slope,
    softened,
    with_excess,
    with_mean,
)
from refloss.kernels.launch_distillation import total
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import bounds, magnitude_at, ordinal_at, read, store, value_of

__all__ = ["Teacher", "Wanted", "distillation", "highest", "teacher", "total"]

_BLOCK = 128


class Room(NamedTuple):
    """What the rows of a layer are worked out in."""

    lanes: Any  # [C, R] float64
    values: Any  # [R] float64, the losses


class Highest(NamedTuple):
    """The highest probability of each row."""

    values: Any  # [R] float64


@gpu_kernel
def _teach(logits, teacher, count):
    """The teacher of rows."""
    for index in range(cuda.grid(1), count, cuda.gridsize(1)):
        start = row_offset(logits, index)
        highest, total = -np.inf, 0.0
        for c in range(logits.classes):
            value = read(logits.memory, start + c * logits.class_stride)
            teacher.logits[c, index] = value
            highest = larger(value, highest)
        for c in range(logits.classes):
            term = softened(teacher.logits[c, index], highest)
            teacher.probabilities[c, index] = term
            total += term
        for c in range(logits.classes):
            teacher.probabilities[c, index] = read(teacher.probabilities, (c, index)) / total


@gpu_kernel
def _highest_probabilities(logits, result):
    """σ of the largest logit of each row; NaN if there is one."""
    lowest, infinity = bounds(logits.memory)
    for index in range(cuda.grid(1), result.values.size, cuda.gridsize(1)):
        start = row_offset(logits, index)
        place, largest = lowest, infinity
        for c in range(logits.classes):
            here = ordinal_at(logits.memory, start + c * logits.class_stride)
            place = here if here > place else place
            size = magnitude_at(logits.memory, start + c * logits.class_stride)
            largest = size if size > largest else largest
        result.values[index] = probability(value_of(place, logits.memory)) if largest <= infinity else np.nan


@gpu_function
def _divergence(logits, start, index, teacher, lanes):
    """KL(t ‖ s) of a row; into its lane and the result what its slopes are made of: Φ and 1/(1 + Φ)."""
    mean, total = 0.0, 0.0
    for c in range(logits.classes):
        x = read(logits.memory, start + c * logits.class_stride)
        far, mean = with_mean(x, teacher.logits[c, index], teacher.probabilities[c, index], mean)
        lanes[c, index] = far
    for c in range(logits.classes):
        growth, total = with_excess(lanes[c, index], teacher.probabilities[c, index], mean, total)
        lanes[c, index] = growth
    value, inverse = divergence_of(total)
    if total < LARGEST:
        return value, total, inverse
    for c in range(logits.classes):
        lanes[c, index] = read(logits.memory, start + c * logits.class_stride)
    value = plain_divergence(lanes[:, index], teacher.logits[:, index], teacher.probabilities[:, index])
    return value, 0.0, 1.0


@gpu_kernel
def _distil(logits, gradient, teacher, wanted, room, with_gradient):
    """The loss of each row, and its gradient."""
    for index in range(cuda.grid(1), room.values.size, cuda.gridsize(1)):
        start, to = row_offset(logits, index), row_offset(gradient, index)
        value, total, inverse = _divergence(logits, start, index, teacher, room.lanes)
        room.values[index] = read(wanted.weights, index) * value
        if with_gradient:
            place, coefficient = wanted.places[index], wanted.coefficients[index]
            for c in range(logits.classes):
                value = slope(room.lanes[c, index], teacher.probabilities[c, index], total, inverse, coefficient)
                if place >= 0:
                    value += read(wanted.others[place], c)
                store(gradient.memory, to + c * gradient.class_stride, value)


def teacher(logits: np.ndarray) -> Teacher:
    """What the rows of logits [..., C] teach; it stays on the GPU."""
    rows = runtime.rows_on_device(logits, logits.ndim - 1)
    count = logits.size // max(1, rows.classes)
    memory: list[Any] = [runtime.Array((rows.classes, count), np.float64) for _ in Teacher._fields]
    result = Teacher(*memory)
    runtime.launch(_teach, runtime.grid(count, _BLOCK), _BLOCK, rows, result, count)
    return result


def highest(logits: np.ndarray) -> np.ndarray:
    """The highest probability σ(x) of each row of logits [..., C]."""
    result = runtime.Array(int(np.prod(logits.shape[:-1], dtype=np.int64)), np.float64)
    rows = runtime.rows_on_device(logits, logits.ndim - 1)
    count = result.memory.size
    runtime.launch(_highest_probabilities, runtime.grid(count, _BLOCK), _BLOCK, rows, Highest(result))
    return result.download().reshape(logits.shape[:-1])


def distillation(logits: np.ndarray, gradient: np.ndarray | None, teacher: Teacher, wanted: Wanted) -> np.ndarray:
    """The weighted loss of each row of logits [..., C]; their gradient is written."""
    rows = runtime.rows_on_device(logits, logits.ndim - 1)
    written = None if gradient is None else runtime.Gradient(gradient)
    destination = rows if written is None else runtime.rows_on_device(written.array, logits.ndim - 1)
    count = wanted.weights.size
    room = Room(runtime.Array((rows.classes, count), np.float64), runtime.Array(count, np.float64))
    arguments = (rows, destination, teacher, wanted, room, written is not None)
    runtime.launch(_distil, runtime.grid(count, _BLOCK), _BLOCK, *arguments)
    if written is not None:
        written.finish()
    values: np.ndarray = room.values.download()
    return values
