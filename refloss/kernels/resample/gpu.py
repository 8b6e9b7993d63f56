"""Bilinear resampling on a GPU: the passes of kernels.resample.loop along one axis, then the other, thread by element.

The adjoint gathers: an element's thread adds what the outputs next to it hand back, in the order of the outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.resample.loop import Axis, axis, between, with_share
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store

_BLOCK = 256


class Lines(NamedTuple):
    """Lines of some planes: line r is line r % per_plane of plane planes[r // per_plane]."""

    planes: np.ndarray
    per_plane: int


class Neighbours(NamedTuple):
    """The outputs that lie next to each element of an axis: first ... last."""

    first: np.ndarray
    last: np.ndarray


@gpu_function
def _position(index, lines, rows):
    """The line and the element of a thread: neighbouring threads work on neighbours in memory."""
    if rows.class_stride == 1:
        return index // rows.classes, index % rows.classes
    count = lines.planes.size * lines.per_plane
    return index % count, index // count


@gpu_function
def _row(line, lines):
    """Where a line is among those of all planes."""
    return lines.planes[line // lines.per_plane] * lines.per_plane + line % lines.per_plane


@gpu_kernel
def _resample_lines(narrow, lines, taps, resized):
    """Lines of narrow, resampled into resized."""
    for index in range(cuda.grid(1), lines.planes.size * lines.per_plane * resized.classes, cuda.gridsize(1)):
        line, output = _position(index, lines, resized)
        start = row_offset(narrow, _row(line, lines))
        low = read(narrow.memory, start + taps.first[output] * narrow.class_stride)
        high = read(narrow.memory, start + taps.second[output] * narrow.class_stride)
        to = row_offset(resized, line) + output * resized.class_stride
        store(resized.memory, to, between(low, high, taps.weight[output]))


@gpu_kernel
def _spread_lines(resized, lines, taps, neighbours, narrow):
    """The adjoint: lines of narrow from the cotangents resized."""
    for index in range(cuda.grid(1), lines.planes.size * lines.per_plane * narrow.classes, cuda.gridsize(1)):
        line, element = _position(index, lines, narrow)
        start = row_offset(resized, line)
        total = 0.0
        for output in range(neighbours.first[element], neighbours.last[element]):
            value = read(resized.memory, start + output * resized.class_stride)
            if taps.first[output] == element:
                total = with_share(total, value, 1.0 - taps.weight[output])
            if taps.second[output] == element:
                total = with_share(total, value, taps.weight[output])
        store(narrow.memory, row_offset(narrow, _row(line, lines)) + element * narrow.class_stride, total)


def new_planes(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for what is resampled, float64."""
    return runtime.allocate(shape, np.float64)


def resample(planes: np.ndarray, resized: np.ndarray) -> None:
    """Planes [P, h, w] resampled into float64 [P, H, W]."""
    written = runtime.Gradient(resized)
    resample_planes(planes, np.arange(len(planes)), written.array)
    written.finish()


def spread(resized: np.ndarray, planes: np.ndarray) -> None:
    """The adjoint of resampling: cotangents [P, H, W], float64, into those of [P, h, w]."""
    written = runtime.Gradient(planes)
    spread_planes(resized, np.arange(len(planes)), written.array)
    written.finish()


def resample_planes(planes: np.ndarray, chosen: np.ndarray, resized: np.ndarray) -> None:
    """Planes chosen [P] of [..., h, w] resampled into device memory [P, H, W]."""
    height, width = planes.shape[-2:]
    wide = new_planes((len(chosen), height, resized.shape[2]))
    _resample(planes, Lines(chosen, height), axis(width, resized.shape[2]), wide, -1)
    _resample(wide, _columns(wide), axis(height, resized.shape[1]), resized, -2)


def spread_planes(resized: np.ndarray, chosen: np.ndarray, planes: np.ndarray) -> None:
    """The adjoint, cotangents [P, H, W] into those of planes chosen [P] of [..., h, w] in device memory."""
    height, width = planes.shape[-2:]
    wide = new_planes((len(chosen), height, resized.shape[2]))
    _spread(resized, _columns(wide), axis(height, resized.shape[1]), wide, -2)
    _spread(wide, Lines(chosen, height), axis(width, resized.shape[2]), planes, -1)


def _columns(planes: np.ndarray) -> Lines:
    """The lines along the middle axis of all planes."""
    return Lines(np.arange(len(planes)), planes.shape[2])


def _resample(narrow: np.ndarray, lines: Lines, taps: Axis, resized: np.ndarray, along: int) -> None:
    source, destination = runtime.rows_on_device(narrow, along), runtime.rows_on_device(resized, along)
    runtime.launch(_resample_lines, runtime.grid(resized.size, _BLOCK), _BLOCK, source, lines, taps, destination)


def _spread(resized: np.ndarray, lines: Lines, taps: Axis, narrow: np.ndarray, along: int) -> None:
    source, destination = runtime.rows_on_device(resized, along), runtime.rows_on_device(narrow, along)
    size = lines.planes.size * lines.per_plane * destination.classes
    neighbours = _neighbours(taps, destination.classes)
    arguments = (source, lines, taps, neighbours, destination)
    runtime.launch(_spread_lines, runtime.grid(size, _BLOCK), _BLOCK, *arguments)


def _neighbours(taps: Axis, size: int) -> Neighbours:
    """Of each of size elements; an output's first element never decreases."""
    elements = np.arange(size)
    return Neighbours(np.searchsorted(taps.first, elements - 1), np.searchsorted(taps.first, elements, "right"))
