"""Samples of masks at points, and their adjoint, on a GPU: a thread for each sample, and for each pixel.

The adjoint gathers: a pixel's thread adds what the points in the four cells around it hand back, in the order of the
CPU, which is that of the cells.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_kernel
from refloss.kernels.points.loop import Places, Planes, Slopes, corner_weight, told, with_pixel, with_share
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair
from refloss.numerics.pairs import pair

_BLOCK = 256


class Chosen(NamedTuple):
    """Some planes of height × width, element by element, and the set of points that each is looked at in."""

    elements: Any
    rows: np.ndarray
    sets: np.ndarray
    height: int
    width: int


@gpu_kernel
def _sample(chosen, places, samples):
    """[2, R, P], the high and the low parts."""
    _, count, points = samples.shape
    memory, height, width = chosen.elements.memory, chosen.height, chosen.width
    for index in range(cuda.grid(1), count * points, cuda.gridsize(1)):
        r, k = index // points, index % points
        s, total = chosen.sets[r], pair(0.0)
        for corner in range(4):
            y, x = places.first[s, k, 0] + (corner >> 1), places.first[s, k, 1] + (corner & 1)
            if y >= 0 and y < height and x >= 0 and x < width:
                value = read(memory, row_offset(chosen.elements, (chosen.rows[r] * height + y) * width + x))
                total = with_pixel(total, corner_weight(places, s, k, corner), value)
        samples[0, r, k], samples[1, r, k] = total


@gpu_kernel
def _spread(chosen, places, slopes, starts):
    """The gradient of every pixel of the chosen planes; starts are those of the cells' points [M, cells + 1]."""
    height, width = chosen.height, chosen.width
    pixels = height * width
    for index in range(cuda.grid(1), chosen.rows.size * pixels, cuda.gridsize(1)):
        m, i = index // pixels, index % pixels
        y, x = i // width, i % width
        total, size = pair(0.0), 0.0
        # A point's cell is that of its last pixel: the first of the four cells around a pixel has the pixel last.
        for around in range(4):
            cell = (y + (around >> 1)) * (width + 1) + x + (around & 1)
            for k in range(starts[m, cell], starts[m, cell + 1]):
                weight = corner_weight(places, m, k, 3 - around)
                total, size = with_share(total, size, slopes, m, k, weight)
        offset = row_offset(chosen.elements, chosen.rows[m] * pixels + i)
        store_pair(chosen.elements.memory, offset, told(total, size))


def sample(planes: Planes, places: Places, shape: tuple[int, ...]) -> np.ndarray:
    """[2, R, P]: samples, high and low parts."""
    values = planes.values
    samples = runtime.Array((2, *shape), np.float64)
    elements = runtime.rows_on_device(values, values.ndim)
    chosen = Chosen(elements, planes.rows, planes.sets, *values.shape[-2:])
    count = shape[0] * shape[1]
    runtime.launch(_sample, runtime.grid(count, _BLOCK), _BLOCK, chosen, places, samples)
    return samples.download()


def spread(slopes: Slopes, places: Places, rows: np.ndarray, gradient: np.ndarray) -> None:
    """The gradients of planes rows; what is there of others stays."""
    height, width = gradient.shape[-2:]
    cells, edges = places.cells((height, width)), np.arange((height + 1) * (width + 1) + 1)
    starts = np.array([np.searchsorted(of_plane, edges) for of_plane in cells]).reshape(len(rows), len(edges))
    written = runtime.Gradient(gradient, initial=True)
    elements = runtime.rows_on_device(written.array, written.array.ndim)
    chosen = Chosen(elements, rows, rows, height, width)
    count = len(rows) * height * width
    runtime.launch(_spread, runtime.grid(count, _BLOCK), _BLOCK, chosen, places, slopes, starts)
    written.finish()
