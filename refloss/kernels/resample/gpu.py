"""Bilinear resampling on a GPU: the passes of kernels.resample.loop along one axis, then the other, thread by element.

The adjoint gathers: an element's thread adds what the outputs next to it hand back, in the order of the CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.resample.loop import Axis, axis, between, inverse, with_share
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read
from refloss.numerics.pairs import multiply, rounded

_BLOCK = 256


class Chosen(NamedTuple):
    """Some planes of height × width, element by element."""

    elements: Any
    planes: np.ndarray
    height: int
    width: int


@gpu_function
def _element(chosen, p, y, x):
    """Where an element of a chosen plane is in memory."""
    return row_offset(chosen.elements, (chosen.planes[p] * chosen.height + y) * chosen.width + x)


@gpu_kernel
def _widen(chosen, horizontal, wide):
    """Chosen planes, resampled along their lines: [2, P, h, W], the high and the low parts."""
    _, count, height, across = wide.shape
    memory = chosen.elements.memory
    for index in range(cuda.grid(1), count * height * across, cuda.gridsize(1)):
        x, y, p = index % across, index // across % height, index // across // height
        first = read(memory, _element(chosen, p, y, horizontal.first[x]))
        second = read(memory, _element(chosen, p, y, horizontal.second[x]))
        value = between((first, 0.0), (second, 0.0), horizontal.near[x], horizontal.far[x])
        wide[0, p, y, x], wide[1, p, y, x] = value


@gpu_kernel
def _resample_lines(wide, vertical, scale, resized):
    """Widened planes, resampled across their lines and rounded: [P, H, W]."""
    count, height, across = resized.shape
    for index in range(cuda.grid(1), count * height * across, cuda.gridsize(1)):
        x, y, p = index % across, index // across % height, index // across // height
        i, j = vertical.first[y], vertical.second[y]
        first, second = (wide[0, p, i, x], wide[1, p, i, x]), (wide[0, p, j, x], wide[1, p, j, x])
        resized[p, y, x] = rounded(multiply(between(first, second, vertical.near[y], vertical.far[y]), scale))


@gpu_function
def gathered(values, axis, i):
    """What outputs hand back to element i of an axis."""
    total = 0.0
    for output in range(axis.starts[max(i - 1, 0)], axis.starts[i]):
        if axis.far[output] != 0.0:
            total = with_share(total, values[output], axis.far[output])
    for output in range(axis.starts[i], axis.starts[i + 1]):
        total = with_share(total, values[output], axis.near[output])
    return total


@gpu_kernel
def _spread_lines(resized, vertical, wide):
    """The adjoint of _resample_lines, without the scale: [P, h, W] from [P, H, W]."""
    count, height, across = wide.shape
    for index in range(cuda.grid(1), count * height * across, cuda.gridsize(1)):
        x, i, p = index % across, index // across % height, index // across // height
        wide[p, i, x] = gathered(resized[p, :, x], vertical, i)


def new_planes(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for what is resampled, float64."""
    return runtime.allocate(shape, np.float64)


def resample(planes: np.ndarray, resized: np.ndarray) -> None:
    """Planes [P, h, w] resampled into float64 [P, H, W]."""
    written = runtime.Gradient(resized)
    resample_planes(planes, np.arange(len(planes)), written.array)
    written.finish()


def resample_planes(planes: np.ndarray, chosen: np.ndarray, resized: np.ndarray) -> Any:
    """Planes chosen [P] of [..., h, w] resampled into device memory [P, H, W].

    Returns:
        The same along their lines alone, as pairs [2, P, h, W].
    """
    vertical, horizontal = _axes(planes, resized)
    wide = runtime.Array((2, len(chosen), planes.shape[-2], resized.shape[2]), np.float64)
    _launch(_widen, wide.memory.size // 2, _chosen(planes, chosen), horizontal, wide)
    _launch(_resample_lines, resized.size, wide, vertical, inverse(vertical, horizontal), resized)
    return wide


def spread_lines(resized: Any, vertical: Axis) -> Any:
    """What outputs [P, H, W] hand back across their lines, without the scale: [P, h, W]."""
    wide = runtime.Array((resized.shape[0], len(vertical.starts) - 1, resized.shape[2]), np.float64)
    _launch(_spread_lines, wide.memory.size, resized, vertical, wide)
    return wide


def _axes(planes: np.ndarray, resized: np.ndarray) -> tuple[Axis, Axis]:
    return axis(planes.shape[-2], resized.shape[1]), axis(planes.shape[-1], resized.shape[2])


def _chosen(planes: np.ndarray, chosen: np.ndarray) -> Chosen:
    return Chosen(runtime.rows_on_device(planes, planes.ndim), chosen, *planes.shape[-2:])


def _launch(kernel: Any, count: int, *arguments: Any) -> None:
    runtime.launch(kernel, runtime.grid(count, _BLOCK), _BLOCK, *arguments)
