"""Cross-entropy of resampled logits: from arrays to kernels and back, and which device they run on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.resample.loop import Axis, axis, inverse
from refloss.kernels.rows import elements_of
from refloss.kernels.segmentation.loop import (
    Lanes,
    Output,
    Pixels,
    Rounding,
    compare_lines,
    narrow_lines,
    new_lanes,
    widen_lines,
)
from refloss.numerics.exact import Exact, as_pair, exact
from refloss.numerics.memory import as_writable
from refloss.numerics.settled import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Callable

# Pixels' logits a thread takes at a time.
BLOCK_ELEMENTS = 1 << 17
# Of a sum over pixels, in units of 2^-53 of its terms' magnitudes: what its terms are off by, and its last roundings.
_OF_TERMS = 16


def segmentation_rows(
    logits: np.ndarray,
    labels: np.ndarray,
    ignore_index: int,
    cotangent: Exact,
    gradient: np.ndarray | None,
    backend: str,
) -> Output:
    """Pixels [B, H, W] of resampled logits [B, C, h, w]; their gradient, for a pixel's cotangent, is written."""
    output = Output(np.empty(labels.shape), np.empty(labels.shape))
    vertical, horizontal = (axis(*sizes) for sizes in zip(logits.shape[2:], labels.shape[1:], strict=True))
    scale = inverse(vertical, horizontal)
    rounding = None if gradient is None else _rounding(cotangent, gradient, vertical, horizontal)
    of_image = _device(backend)
    for i in range(len(logits)):
        results = Output(*(values[i] for values in output))
        # In any integer type: the kernel is compiled for one.
        classes = as_writable(np.ascontiguousarray(labels[i], np.int64))
        pixels = Pixels(np.empty(0), classes, results.nll, vertical, horizontal, scale, ignore_index)
        of_image(logits[i], pixels, results, None if gradient is None else gradient[i], rounding)
    return output


def _device(backend: str) -> Callable[..., None]:
    if runs_on_gpu(backend):
        from refloss.kernels.segmentation import gpu

        return gpu.compare
    return _compare


def _rounding(cotangent: Exact, gradient: np.ndarray, vertical: Axis, horizontal: Axis) -> Rounding:
    whole = exact(vertical.whole) * exact(horizontal.whole)
    tolerance = math.ldexp(vertical.reach + horizontal.reach + _OF_TERMS, -53)
    return Rounding(as_pair(cotangent / whole), tolerance, PRECISIONS[gradient.dtype])


def _compare(
    planes: np.ndarray, pixels: Pixels, output: Output, gradient: np.ndarray | None, rounding: Rounding | None
) -> None:
    """Planes [C, h, w] of one image."""
    classes, height, width = planes.shape
    across = pixels.labels.shape[1]
    source = elements_of(planes)
    pixels = pixels._replace(wide=np.empty((2, height, classes, across)))

    def widen(first: int, last: int, _: None) -> None:
        widen_lines(source, width, pixels.horizontal, pixels.wide, first, last)

    parallel.run_blocks(widen, height, _block(classes * across), lambda: None)
    sums = np.empty((height if gradient is not None else 0, 2, classes + 1, across))

    def compare(first: int, last: int, lanes: Lanes) -> None:
        compare_lines(pixels, output, sums, lanes, first, last, gradient is not None)

    lines = -(-len(pixels.labels) // height)
    parallel.run_blocks(compare, height, _block(classes * across * lines), lambda: new_lanes(classes))
    if gradient is None:
        return
    destination = elements_of(gradient)

    def narrow(first: int, last: int, _: None) -> None:
        narrow_lines(sums, pixels, rounding, destination, width, first, last)

    parallel.run_blocks(narrow, height, _block(classes * across), lambda: None)


def _block(elements: int) -> int:
    """Lines of some elements that a thread takes at a time."""
    return max(1, BLOCK_ELEMENTS // max(1, elements))
