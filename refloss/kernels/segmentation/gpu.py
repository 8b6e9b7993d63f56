"""Cross-entropy of resampled logits on a GPU: the scalars of kernels.segmentation.loop, thread by pixel or by logit.

The adjoint gathers: an element's thread adds what the pixels next to it hand back, in the order of the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.resample.gpu import gathered
from refloss.kernels.resample.loop import between, with_share
from refloss.kernels.rows import row_offset
from refloss.kernels.segmentation.loop import Output, Pixels, Rounding, apart, lse_of, split_pixel
from refloss.kernels.segmentation.refine import finished, is_finished, is_larger, pixel_logit
from refloss.numerics.exponential import exp_below
from refloss.numerics.formats import read, store
from refloss.numerics.pairs import rounded, times
from refloss.numerics.sums import grid_counts

_BLOCK = 128


@gpu_kernel
def _widen(planes, horizontal, wide):
    """All planes, resampled along their lines."""
    _, height, classes, across = wide.shape
    width = horizontal.starts.size - 1
    for index in range(cuda.grid(1), height * classes * across, cuda.gridsize(1)):
        x, c, y = index % across, index // across % classes, index // across // classes
        line = (c * height + y) * width
        first = read(planes.memory, row_offset(planes, line + horizontal.first[x]))
        second = read(planes.memory, row_offset(planes, line + horizontal.second[x]))
        value = between((first, 0.0), (second, 0.0), horizontal.near[x], horizontal.far[x])
        wide[0, y, c, x], wide[1, y, c, x] = value


@gpu_function
def _largest(pixels, label, y, x):
    """The label's logit and the largest of the others; a logit that is NaN or +inf, if there is one."""
    own, other, overflow = (-np.inf, 0.0), (-np.inf, 0.0), 0.0
    for c in range(pixels.wide.shape[2]):
        logit = pixel_logit(pixels, c, y, x)
        if not logit[0] < np.inf:
            overflow = logit[0]
        if c == label:
            own = logit
        elif is_larger(logit[0], logit[1], other[0], other[1]):
            other = logit
    return own, other, overflow


@gpu_function
def _term(pixels, c, y, x, other):
    """An exponential relative to the largest of the others."""
    logit = pixel_logit(pixels, c, y, x)
    return exp_below(*apart(logit[0], logit[1], other[0] if other[0] > -np.inf else 0.0, other[1], pixels.scale))


@gpu_kernel
def _compare(pixels, output, handed, with_gradient):
    """The pixels' losses, and what they hand back to each class, [C + 1, H, W]; the last of the planes is for all."""
    height, across = pixels.labels.shape
    classes = pixels.wide.shape[2]
    for index in range(cuda.grid(1), height * across, cuda.gridsize(1)):
        y, x = index // across, index % across
        ignored = pixels.labels[y, x] == pixels.ignore_index
        label = -1 if ignored else pixels.labels[y, x]
        own, other, overflow = _largest(pixels, label, y, x)
        coarse, fine = np.int64(0), np.int64(0)
        for c in range(classes):
            if c != label:
                counts = grid_counts(_term(pixels, c, y, x, other))
                coarse += counts[0]
                fine += counts[1]
        split = split_pixel(own, other, coarse, fine, 0, pixels.scale)
        sound = overflow < np.inf
        defined = sound and max(own[0], other[0]) > -np.inf
        output.lse[y, x] = lse_of(own, other, split, pixels.scale) if defined else (-np.inf if sound else np.nan)
        output.nll[y, x] = 0.0 if ignored else (rounded(split.nll) if defined else np.nan)
        if not with_gradient:
            continue
        rest = 0.0 if ignored else (rounded(split.rest) if defined else np.nan)
        handed[classes, y, x] = rest
        for c in range(classes):
            value = 0.0 if ignored else (times(_term(pixels, c, y, x, other), split.term) if defined else np.nan)
            handed[c, y, x] = -rest if c == label else value


@gpu_function
def _joined(values, vertical, i):
    """What the pixels above and below line i of logits hand back to it."""
    above, below = 0.0, 0.0
    for y in range(vertical.starts[max(i - 1, 0)], vertical.starts[i]):
        if vertical.far[y] != 0.0:
            above = with_share(above, values[y], vertical.far[y])
    for y in range(vertical.starts[i], vertical.starts[i + 1]):
        below = with_share(below, values[y], vertical.near[y])
    return above + below


@gpu_kernel
def _spread(handed, vertical, sums):
    """To lines of logits, [C + 1, h, W]."""
    planes, height, across = sums.shape
    for index in range(cuda.grid(1), planes * height * across, cuda.gridsize(1)):
        x, i, c = index % across, index // across % height, index // across // height
        sums[c, i, x] = _joined(handed[c, :, x], vertical, i)


@gpu_kernel
def _narrow(sums, horizontal, totals):
    """To logits, [C + 1, h, w]."""
    planes, height, width = totals.shape
    for index in range(cuda.grid(1), planes * height * width, cuda.gridsize(1)):
        j, i, c = index % width, index // width % height, index // width // height
        totals[c, i, j] = gathered(sums[c, i], horizontal, j)


@gpu_kernel
def _finish(totals, pixels, rounding, gradient):
    """The gradient of each logit."""
    planes, height, width = totals.shape
    for index in range(cuda.grid(1), (planes - 1) * height * width, cuda.gridsize(1)):
        j, i, c = index % width, index // width % height, index // width // height
        total, bound = totals[c, i, j], totals[planes - 1, i, j]
        value = times(total, rounding.coefficient)
        if not is_finished(value, total, bound, rounding):
            value = finished(value, total, pixels, rounding, c, i, j)
        store(gradient.memory, row_offset(gradient, index), value)


def compare(
    planes: np.ndarray, pixels: Pixels, output: Output, gradient: np.ndarray | None, rounding: Rounding | None
) -> None:
    """Planes [C, h, w] of one image."""
    classes, height, width = planes.shape
    down, across = pixels.labels.shape
    wide: Any = runtime.Array((2, height, classes, across), np.float64)
    source = runtime.rows_on_device(planes, planes.ndim)
    _launch(_widen, height * classes * across, source, pixels.horizontal, wide)
    results: Any = [runtime.Array((down, across), np.float64) for _ in output]
    uploaded = runtime.upload(pixels._replace(wide=wide, nll=results[1]))
    with_gradient = gradient is not None
    handed = runtime.Array((classes + 1, down, across) if with_gradient else (1, 1, 1), np.float64)
    _launch(_compare, down * across, uploaded, Output(*results), handed, with_gradient)
    for result, values in zip(results, output, strict=True):
        result.download(values)
    if gradient is None:
        return
    sums = runtime.Array((classes + 1, height, across), np.float64)
    totals = runtime.Array((classes + 1, height, width), np.float64)
    written = runtime.Gradient(gradient)
    _launch(_spread, (classes + 1) * height * across, handed, pixels.vertical, sums)
    _launch(_narrow, (classes + 1) * height * width, sums, pixels.horizontal, totals)
    destination = runtime.rows_on_device(written.array, gradient.ndim)
    _launch(_finish, classes * height * width, totals, uploaded, rounding, destination)
    written.finish()


def _launch(kernel: object, count: int, *arguments: object) -> None:
    runtime.launch(kernel, runtime.grid(count, _BLOCK), _BLOCK, *arguments)
