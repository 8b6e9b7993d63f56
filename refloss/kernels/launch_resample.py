"""Bilinear resampling on the CPU: from arrays to kernels and back."""

from __future__ import annotations

import numpy as np

from refloss import parallel
from refloss.kernels.resample import axis, resample_planes, spread_planes
from refloss.kernels.rows import rows_of


def resample(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[..., h, w] resampled to [..., H, W], in float64."""
    *lead, height, width = planes.shape
    resized = np.empty((int(np.prod(lead)), *size))
    source = rows_of(planes[..., None], planes.ndim)
    vertical, horizontal = axis(height, size[0]), axis(width, size[1])

    def work(first: int, last: int, _: None) -> None:
        resample_planes(source, vertical, horizontal, height, width, resized, first, last)

    parallel.run_blocks(work, len(resized), 1, lambda: None)
    return resized.reshape(*lead, *size)


def spread(resized: np.ndarray, planes: np.ndarray) -> None:
    """The adjoint of resampling: cotangents [..., H, W], float64, into those of [..., h, w]."""
    *lead, height, width = planes.shape
    cotangent = resized.reshape(int(np.prod(lead)), *resized.shape[-2:])
    destination = rows_of(planes[..., None], planes.ndim)
    vertical, horizontal = axis(height, cotangent.shape[1]), axis(width, cotangent.shape[2])

    def work(first: int, last: int, _: None) -> None:
        spread_planes(cotangent, vertical, horizontal, height, width, destination, first, last)

    parallel.run_blocks(work, len(cotangent), 1, lambda: None)
