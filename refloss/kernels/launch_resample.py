"""Bilinear resampling on the CPU: from arrays to kernels and back."""

from __future__ import annotations

import numpy as np

from refloss import parallel
from refloss.kernels.resample import axis, resample_planes, spread_planes
from refloss.kernels.rows import elements_of


def new_planes(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for what is resampled, float64."""
    return np.empty(shape)


def resample(planes: np.ndarray, resized: np.ndarray) -> None:
    """Planes [P, h, w] resampled into float64 [P, H, W]."""
    _, height, width = planes.shape
    size = resized.shape[1:]
    source = elements_of(planes)
    vertical, horizontal = axis(height, size[0]), axis(width, size[1])

    def work(first: int, last: int, _: None) -> None:
        resample_planes(source, vertical, horizontal, height, width, resized, first, last)

    parallel.run_blocks(work, len(resized), 1, lambda: None)


def spread(resized: np.ndarray, planes: np.ndarray) -> None:
    """The adjoint of resampling: cotangents [P, H, W], float64, into those of [P, h, w]."""
    _, height, width = planes.shape
    destination = elements_of(planes)
    vertical, horizontal = axis(height, resized.shape[1]), axis(width, resized.shape[2])

    def work(first: int, last: int, _: None) -> None:
        spread_planes(resized, vertical, horizontal, height, width, destination, first, last)

    parallel.run_blocks(work, len(resized), 1, lambda: None)
