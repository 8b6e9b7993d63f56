"""Bilinear resampling: from arrays to kernels and back, and which device they run on."""

from __future__ import annotations

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.resample.loop import axis, inverse, resample_planes
from refloss.kernels.rows import elements_of


def resample(planes: np.ndarray, resized: np.ndarray, backend: str) -> None:
    """Planes [P, h, w] resampled into float64 [P, H, W]."""
    if runs_on_gpu(backend):
        from refloss.kernels.resample import gpu

        gpu.resample(planes, resized)
        return
    _, height, width = planes.shape
    size = resized.shape[1:]
    source = elements_of(planes)
    vertical, horizontal = axis(height, size[0]), axis(width, size[1])
    scale = inverse(vertical, horizontal)

    def work(first: int, last: int, _: None) -> None:
        resample_planes(source, vertical, horizontal, scale, height, width, resized, first, last)

    parallel.run_blocks(work, len(resized), 1, lambda: None)
