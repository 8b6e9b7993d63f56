"""Cross-entropy of the pixels between logits: their losses, and what they hand back to the logits.

A line of pixels lies between two lines of logits, and is worked on for as long as it is in the nearest caches: logits
are resampled to pairs, made exponentials, and then what each pixel hands back, which is added to what those two lines
get. Logits' differences from the pixel's largest are formed as pairs and rounded by no more than the exponentials are,
so that what all logits have in common costs no digit.

The gradient of a logit is a sum of both signs: a pixel hands w·p_c back to the classes that are not its own, and
−w·(1 − p_c) to its own. The latter, Σ w·(1 − p_c) of all classes, bound what may have cancelled. Where the rounding to
the gradient's format might then come out otherwise, the element is computed again in pairs
(kernels.segmentation.refine).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.resample.loop import Axis, between_lines, narrowed_line, widen_line, with_share
from refloss.kernels.rows import copy, load, save
from refloss.kernels.segmentation.refine import finished, is_finished, is_larger
from refloss.kernels.softmax.split import split_class
from refloss.numerics.bits import fma
from refloss.numerics.exponential import exp_below
from refloss.numerics.pairs import add, fast_two_sum, multiply, rounded, times, two_product, two_sum
from refloss.numerics.settled import Precision
from refloss.numerics.sums import grid_bits, grid_total

# Pixels of a line that are worked on together.
COLUMNS = 512


class Pixels(NamedTuple):
    """An image's pixels, and the logits that they lie between."""

    wide: np.ndarray  # [2, h, C, W] logits, resampled along their lines, times the horizontal axis's whole; pairs
    labels: np.ndarray  # [H, W]
    nll: np.ndarray  # [H, W] their losses, known once their gradient is asked for
    vertical: Axis
    horizontal: Axis
    scale: tuple[float, float]  # the axes' inverse
    ignore_index: int


class Output(NamedTuple):
    """What each pixel yields, float64 [H, W]."""

    lse: np.ndarray
    nll: np.ndarray


class Rounding(NamedTuple):
    """How sums become gradients."""

    coefficient: tuple[float, float]  # a pixel's cotangent times the axes' inverse
    tolerance: float  # how far a sum may be off, relative to the sum of its terms' magnitudes
    precision: Precision  # of the gradient's format


class Lanes(NamedTuple):
    """One thread's buffers: a value for each of some pixels, and for each of their classes."""

    high: np.ndarray  # [C, COLUMNS] logits, then their exponentials; none of the label
    low: np.ndarray  # [C, COLUMNS]
    labels: np.ndarray  # -1 where ignored
    own: np.ndarray  # logits of the label, high and low
    own_low: np.ndarray
    other: np.ndarray  # the largest of the others
    other_low: np.ndarray
    overflow: np.ndarray  # a logit that is NaN or +inf, if there is one
    coarse: np.ndarray
    fine: np.ndarray
    factor: np.ndarray  # of the others' exponentials, 0 where ignored
    factor_low: np.ndarray
    rest: np.ndarray  # 1 − p of the label, 0 where ignored


def new_lanes(classes: int) -> Lanes:
    """Buffers for some classes."""
    # Rows at distances other than a page's, which processors take for the same place.
    pitched = np.empty((2 * classes + 8, COLUMNS + 24))
    labels, coarse, fine = np.empty((3, COLUMNS + 24), np.int64)
    own, own_low, other, other_low, overflow, factor, factor_low, rest = pitched[2 * classes :]
    high, low = pitched[:classes], pitched[classes : 2 * classes]
    return Lanes(high, low, labels, own, own_low, other, other_low, overflow, coarse, fine, factor, factor_low, rest)


@jit.scalar
def apart(high, low, reference, reference_low, scale):
    """(logit − reference)·scale as high and low, not normalised."""
    difference, rest = two_sum(high, -reference)
    rest += low - reference_low
    result, lost = two_product(difference, scale[0])
    return result, lost + fma(difference, scale[1], rest * scale[0])


@jit.scalar
def split_pixel(own, other, coarse, fine, classes, scale):
    """The split of a pixel's label from the others' largest logit and the sums of their exponentials."""
    high, low = apart(own[0], own[1], other[0], other[1], scale)
    near, near_low = fast_two_sum(high, low)
    finite = abs(high) < np.inf
    high, low = near if finite else high, near_low if finite else 0.0
    # The distance between two float64 is a pair, and the only thing that counts.
    return split_class(high, -low, grid_total(coarse, fine, classes))


@jit.scalar
def lse_of(own, other, split, scale):
    """The logarithm of the sum of a pixel's exponentials."""
    above = is_larger(own[0], own[1], other[0], other[1])
    largest = own[0] if above else other[0], own[1] if above else other[1]
    return rounded(add(multiply(largest, scale), split.log_total))


@jit.kernel
def widen_lines(planes, width, horizontal, wide, first, last):
    """Lines first ... last of all planes, resampled."""
    line = np.empty(width)
    for y in range(first, last):
        for c in range(wide.shape[2]):
            load(planes, (c * wide.shape[1] + y) * width, line)
            widen_line(line, horizontal, wide[0, y, c], wide[1, y, c])


@jit.helper
def _load_pixels(pixels, y, x, lanes, count):
    """The logits of every class."""
    high, low, i, j = pixels.wide[0], pixels.wide[1], pixels.vertical.first[y], pixels.vertical.second[y]
    near, far, stop = pixels.vertical.near[y], pixels.vertical.far[y], x + count
    for c in range(lanes.high.shape[0]):
        first, first_low = high[i, c][x:stop], low[i, c][x:stop]
        second, second_low = high[j, c][x:stop], low[j, c][x:stop]
        between_lines(first, first_low, second, second_low, near, far, lanes.high[c][:count], lanes.low[c][:count])


@jit.helper
def _take_labels(labels, ignore_index, lanes):
    """Logits of labels are set apart, and those of no class are left in their place."""
    for k in range(labels.size):
        label = -1 if labels[k] == ignore_index else labels[k]
        lanes.labels[k] = label
        lanes.own[k], lanes.own_low[k] = -np.inf, 0.0
        if label >= 0:
            lanes.own[k], lanes.own_low[k] = lanes.high[label, k], lanes.low[label, k]
            lanes.high[label, k], lanes.low[label, k] = -np.inf, 0.0


@jit.helper
def _take_maximum(high, low, other, other_low):
    for k in range(high.size):
        # Each is read once, so that a vector of them is.
        here, here_low, there, there_low = high[k], low[k], other[k], other_low[k]
        larger = is_larger(here, here_low, there, there_low)
        other[k] = here if larger else there
        other_low[k] = here_low if larger else there_low


@jit.helper
def _take_overflow(high, overflow):
    for k in range(high.size):
        here = high[k]
        overflow[k] = overflow[k] if here < np.inf else here


@jit.helper
def _take_exponentials(high, low, other, other_low, scale, coarse, fine):
    for k in range(high.size):
        term = exp_below(*apart(high[k], low[k], other[k], other_low[k], scale))
        high[k] = term
        coarse_bits, fine_bits = grid_bits(term)
        coarse[k] += coarse_bits
        fine[k] += fine_bits


@jit.helper
def _sum_exponentials(lanes, count, scale):
    """The others' exponentials relative to the largest of them, and their sums."""
    other, other_low, overflow = lanes.other[:count], lanes.other_low[:count], lanes.overflow[:count]
    coarse, fine = lanes.coarse[:count], lanes.fine[:count]
    other[:] = -np.inf
    other_low[:] = 0.0
    copy(lanes.own, overflow)
    coarse[:] = 0
    fine[:] = 0
    for c in range(lanes.high.shape[0]):
        _take_maximum(lanes.high[c][:count], lanes.low[c][:count], other, other_low)
        _take_overflow(lanes.high[c][:count], overflow)
    # No others: each exponential is that of −inf.
    reference, reference_low = lanes.factor[:count], lanes.factor_low[:count]
    for k in range(count):
        reference[k] = other[k] if other[k] > -np.inf else 0.0
        reference_low[k] = other_low[k]
    for c in range(lanes.high.shape[0]):
        row, row_low = lanes.high[c][:count], lanes.low[c][:count]
        _take_exponentials(row, row_low, reference, reference_low, scale, coarse, fine)


@jit.helper
def _split_pixels(labels, own, own_low, other, other_low, overflow, coarse, fine, classes, scale, results):
    lses, nlls, factor, factor_low, rest = results
    for k in range(labels.size):
        mine, largest = (own[k], own_low[k]), (other[k], other_low[k])
        split = split_pixel(mine, largest, coarse[k], fine[k], classes, scale)
        lse = lse_of(mine, largest, split, scale)
        sound, ignored = overflow[k] < np.inf, labels[k] < 0
        defined = sound & (max(mine[0], largest[0]) > -np.inf)
        lses[k] = lse if defined else (-np.inf if sound else np.nan)
        nlls[k] = 0.0 if ignored else (rounded(split.nll) if defined else np.nan)
        factor[k] = 0.0 if ignored else (split.term[0] if defined else np.nan)
        factor_low[k] = 0.0 if ignored else (split.term[1] if defined else np.nan)
        rest[k] = 0.0 if ignored else (rounded(split.rest) if defined else np.nan)


@jit.helper
def _split_all(lanes, count, scale, lses, nlls):
    """The split of every pixel."""
    given = lanes.labels[:count], lanes.own[:count], lanes.own_low[:count], lanes.other[:count], lanes.other_low[:count]
    sums = lanes.overflow[:count], lanes.coarse[:count], lanes.fine[:count]
    results = lses, nlls, lanes.factor[:count], lanes.factor_low[:count], lanes.rest[:count]
    _split_pixels(*given, *sums, lanes.high.shape[0], scale, results)
    for k in range(count):
        # What is ignored hands nothing back, be it NaN.
        if lanes.labels[k] < 0 and not lanes.overflow[k] < np.inf:
            lanes.high[:, k] = 0.0


@jit.helper
def _hand_back(terms, factor, factor_low, near, far, sums, after):
    for k in range(terms.size):
        value = times(terms[k], (factor[k], factor_low[k]))
        sums[k] = with_share(sums[k], value, near)
        after[k] = with_share(after[k], value, far)


@jit.helper
def _hand_back_to_one(terms, factor, factor_low, near, sums):
    for k in range(terms.size):
        sums[k] = with_share(sums[k], times(terms[k], (factor[k], factor_low[k])), near)


@jit.helper
def _spread_pixels(lanes, count, x, near, far, sums):
    """What pixels of a line hand back to the lines next to it, [2, C + 1, W]; the last of the planes is for all."""
    factor, factor_low, rest = lanes.factor[:count], lanes.factor_low[:count], lanes.rest[:count]
    classes = lanes.high.shape[0]
    for c in range(classes):
        terms, first, second = lanes.high[c][:count], sums[0, c][x : x + count], sums[1, c][x : x + count]
        if far == 0.0:
            _hand_back_to_one(terms, factor, factor_low, near, first)
        else:
            _hand_back(terms, factor, factor_low, near, far, first, second)
    for k in range(count):
        label = lanes.labels[k]
        if label >= 0:
            for side, weight in enumerate((near, far)):
                if weight != 0.0:
                    sums[side, label, x + k] = with_share(sums[side, label, x + k], -rest[k], weight)
                    sums[side, classes, x + k] = with_share(sums[side, classes, x + k], rest[k], weight)


@jit.kernel
def compare_lines(pixels, output, sums, lanes, first, last, with_gradient):
    """The lines of pixels that lie below lines first ... last of logits; what they hand back to those and the next."""
    vertical = pixels.vertical
    for i in range(first, last):
        if with_gradient:
            sums[i] = 0.0
        for y in range(vertical.starts[i], vertical.starts[i + 1]):
            for x in range(0, pixels.labels.shape[1], COLUMNS):
                stop = min(x + COLUMNS, pixels.labels.shape[1])
                count = stop - x
                _load_pixels(pixels, y, x, lanes, count)
                _take_labels(pixels.labels[y, x:stop], pixels.ignore_index, lanes)
                _sum_exponentials(lanes, count, pixels.scale)
                _split_all(lanes, count, pixels.scale, output.lse[y, x:stop], output.nll[y, x:stop])
                if with_gradient:
                    _spread_pixels(lanes, count, x, vertical.near[y], vertical.far[y], sums[i])


@jit.helper
def _joined(sums, i, c, line):
    """What the pixels above and below line i of logits hand back to it."""
    for x in range(line.size):
        line[x] = (sums[i - 1, 1, c, x] if i > 0 else 0.0) + sums[i, 0, c, x]


@jit.helper
def _finish(totals, values, bounds, pixels, rounding, c, i):
    """Gradients of a line of a class."""
    settled = True
    for j in range(totals.size):
        values[j] = times(totals[j], rounding.coefficient)
        settled &= is_finished(values[j], totals[j], bounds[j], rounding)
    if settled:
        return
    for j in range(totals.size):
        if not is_finished(values[j], totals[j], bounds[j], rounding):
            values[j] = finished(values[j], totals[j], pixels, rounding, c, i, j)


@jit.kernel
def narrow_lines(sums, pixels, rounding, gradient, width, first, last):
    """The gradient of lines first ... last of logits."""
    line = np.empty(sums.shape[3])
    bounds, of_class, values = np.empty(width), np.empty(width), np.empty(width)
    classes = sums.shape[2] - 1
    for i in range(first, last):
        _joined(sums, i, classes, line)
        narrowed_line(line, pixels.horizontal, bounds)
        for c in range(classes):
            _joined(sums, i, c, line)
            narrowed_line(line, pixels.horizontal, of_class)
            _finish(of_class, values, bounds, pixels, rounding, c, i)
            save(values, gradient, (c * sums.shape[0] + i) * width)
