"""Rows of logits against a teacher's, a vector of rows at a time, class by class: see losses/parts/distillation.py.

The teacher's arrays are [C, R], classes first, so that a class of neighbouring rows is a vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, load_rows, load_strided, row_offset, save
from refloss.kernels.softmax.split import scan
from refloss.numerics.exponential import logistic
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal
from refloss.numerics.pairs import two_sum

ROWS = 128
# Sums of a vector of rows begin at different offsets from a page.
LANES = (8, ROWS + 8)


@dataclass(frozen=True)
class DistillationLoop(jit.Description):
    """The scalars of a divergence of softened rows.

    soften(value, highest) is e^((value − highest)/T), larger(value, highest) hands NaN on. with_reference(x, y, t,
    best, reference) keeps the highest t and the distance of its logits, a pair; with_mean(x, y, t, reference, mean,
    spread) is the distance of two logits from that one, and the sums with t times it and t times its magnitude;
    with_excess(distance, t, mean, total) is t·(e^z − 1), and the total Φ with t·(e^z − 1 − z); divergence(Φ) is KL and
    1/(1 + Φ); slope(growth, t, Φ, inverse, coefficient) is the gradient. Where is_close(growth, t, Φ, spread),
    accurate(x, y) computes s − t of the row again, in place of x; where Φ is not below largest, plain(x, y, t) is KL,
    and x becomes s − t.
    """

    larger: Callable[..., Any]
    soften: Callable[..., Any]
    with_reference: Callable[..., Any]
    with_mean: Callable[..., Any]
    with_excess: Callable[..., Any]
    divergence: Callable[..., Any]
    is_close: Callable[..., Any]
    slope: Callable[..., Any]
    accurate: Callable[..., Any]
    plain: Callable[..., Any]
    largest: float


class Teacher(NamedTuple):
    """What a row should be like."""

    logits: np.ndarray  # [C, R] float64
    probabilities: np.ndarray  # [C, R] float64: softmax(logits/T)


class RowWeights(NamedTuple):
    """What the rows of a layer count, and gradients of other terms that are added before the one rounding."""

    weights: np.ndarray  # [R] of the loss
    coefficients: np.ndarray  # [R] of the gradient
    offsets: np.ndarray  # [R] which row of added a row takes, −1 for none
    added: np.ndarray  # [P, C] float64


@jit.once
def teach(loop: DistillationLoop) -> Any:
    """The kernel for a teacher's rows."""
    larger, soften = loop.larger, loop.soften

    @functools.partial(jit.helper, name=loop.name)
    def softmax(logits, probabilities, highest, total, total_low):
        """The softmax of logits/T class by class, [C, n]."""
        highest[:] = -np.inf
        total[:] = 0.0
        total_low[:] = 0.0
        for c in range(logits.shape[0]):
            row = logits[c]
            for k in range(row.size):
                highest[k] = larger(row[k], highest[k])
        for c in range(logits.shape[0]):
            row, out = logits[c], probabilities[c]
            for k in range(row.size):
                out[k] = soften(row[k], highest[k])
                total[k], low = two_sum(total[k], out[k])
                total_low[k] += low
        for c in range(logits.shape[0]):
            out = probabilities[c]
            for k in range(out.size):
                out[k] /= total[k] + total_low[k]

    def rows(logits, teacher, scratch, first, last):
        """The teacher of rows first ... last."""
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            for c in range(logits.classes):
                load(logits, start, teacher.logits[c, start:stop], c * logits.class_stride)
            highest, total, total_low = (
                scratch[0, : stop - start],
                scratch[1, : stop - start],
                scratch[2, : stop - start],
            )
            softmax(teacher.logits[:, start:stop], teacher.probabilities[:, start:stop], highest, total, total_low)

    return jit.kernel(rows, loop.name)


@jit.scalar
def probability(x):
    """σ(x)."""
    u, inverse, _ = logistic(x)
    return inverse if x > 0.0 else u[0] * inverse


@jit.kernel
def highest_probabilities(logits, result, block, first, last):
    """σ of the largest logit of each row; NaN if there is one."""
    size = logits.classes
    step = block.size // size
    for start in range(first, last, step):
        count = min(step, last - start)
        load_rows(logits, start, count, block)
        for k in range(count):
            x = block[k * size : (k + 1) * size]
            highest, largest = scan(x, lowest_ordinal(x), infinity_bits(x))
            result[start + k] = probability(from_ordinal(highest, x)) if largest <= infinity_bits(block) else np.nan


@jit.helper
def _add_rows(x, offsets, added):
    for k in range(x.size):
        if offsets[k] >= 0:
            x[k] += added[offsets[k]]


class Lanes(NamedTuple):
    """A vector of rows: what their classes add up to."""

    best: np.ndarray
    reference: np.ndarray
    reference_low: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    totals: np.ndarray
    inverses: np.ndarray
    close: np.ndarray  # how many classes are


@jit.helper
def _lanes(scratch, count):
    lanes = Lanes(
        scratch[0, :count],
        scratch[1, :count],
        scratch[2, :count],
        scratch[3, :count],
        scratch[4, :count],
        scratch[5, :count],
        scratch[6, :count],
        scratch[7, :count],
    )
    scratch[:, :count] = 0.0
    lanes.best[:] = -1.0
    return lanes


def _sums(loop: DistillationLoop) -> Any:
    """What adds a class of some rows to their lanes, in three rounds."""
    with_reference, with_mean, with_excess, is_close = (
        loop.with_reference,
        loop.with_mean,
        loop.with_excess,
        loop.is_close,
    )

    @functools.partial(jit.helper, name=loop.name)
    def find_reference(x, y, t, lanes):
        best, reference, reference_low = lanes.best, lanes.reference, lanes.reference_low
        for k in range(x.size):
            known = (reference[k], reference_low[k])
            best[k], (reference[k], reference_low[k]) = with_reference(x[k], y[k], t[k], best[k], known)

    @functools.partial(jit.helper, name=loop.name)
    def add_means(x, y, t, lanes):
        means, spreads = lanes.means, lanes.spreads
        for k in range(x.size):
            reference = (lanes.reference[k], lanes.reference_low[k])
            x[k], means[k], spreads[k] = with_mean(x[k], y[k], t[k], reference, means[k], spreads[k])

    @functools.partial(jit.helper, name=loop.name)
    def add_excess(x, t, means, totals):
        for k in range(x.size):
            x[k], totals[k] = with_excess(x[k], t[k], means[k], totals[k])

    @functools.partial(jit.helper, name=loop.name)
    def count_close(x, t, lanes):
        for k in range(x.size):
            lanes.close[k] += 1.0 if is_close(x[k], t[k], lanes.totals[k], lanes.spreads[k]) else 0.0

    return find_reference, add_means, add_excess, count_close


def _divergences(loop: DistillationLoop) -> Any:
    """KL(t ‖ s) of some rows; into the lanes and the scratch what their slopes are made of."""
    largest, plain, accurate, divergence = loop.largest, loop.plain, loop.accurate, loop.divergence
    find_reference, add_means, add_excess, count_close = _sums(loop)

    @functools.partial(jit.helper, name=loop.name)
    def again(logits, teacher, row, x, values, k, lanes):
        """The row of a lane by itself: x is s − t then."""
        y = teacher.logits[:, row]
        distances = np.empty(logits.classes)
        load_strided(logits, row_offset(logits, row), logits.class_stride, distances)
        if lanes.totals[k] < largest:
            accurate(distances, y)
        else:
            values[k] = plain(distances, y, teacher.probabilities[:, row])
        x[: distances.size, k] = distances
        lanes.totals[k], lanes.inverses[k] = 0.0, 1.0

    @functools.partial(jit.helper, name=loop.name)
    def divergences(logits, teacher, start, x, lanes, values, with_gradient):
        stop = start + values.size
        y, t = teacher.logits[:, start:stop], teacher.probabilities[:, start:stop]
        for c in range(logits.classes):
            load(logits, start, x[c, : values.size], c * logits.class_stride)
            find_reference(x[c, : values.size], y[c], t[c], lanes)
        for c in range(logits.classes):
            add_means(x[c, : values.size], y[c], t[c], lanes)
        for c in range(logits.classes):
            add_excess(x[c, : values.size], t[c], lanes.means, lanes.totals)
        if with_gradient:
            for c in range(logits.classes):
                count_close(x[c, : values.size], t[c], lanes)
        for k in range(values.size):
            values[k], lanes.inverses[k] = divergence(lanes.totals[k])
        for k in range(values.size):
            if lanes.close[k] > 0.0 or not lanes.totals[k] < largest:
                again(logits, teacher, start + k, x, values, k, lanes)

    return divergences


@jit.once
def distil(loop: DistillationLoop) -> Any:
    """The kernel for a layer's rows."""
    divergences, slope = _divergences(loop), loop.slope

    @functools.partial(jit.helper, name=loop.name)
    def slopes(x, t, totals, inverses, coefficients):
        for k in range(x.size):
            x[k] = slope(x[k], t[k], totals[k], inverses[k], coefficients[k])

    def rows(logits, gradient, teacher, weights, differences, scratch, values, with_gradient, first, last):
        """The loss of each of rows first ... last, into values, and their gradient."""
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            losses, lanes = values[start:stop], _lanes(scratch, stop - start)
            divergences(logits, teacher, start, differences, lanes, losses, with_gradient)
            for k in range(losses.size):
                losses[k] = weights.weights[start + k] * losses[k]
            if not with_gradient:
                continue
            for c in range(logits.classes):
                x = differences[c, : losses.size]
                coefficients, probabilities = weights.coefficients[start:stop], teacher.probabilities[c, start:stop]
                slopes(x, probabilities, lanes.totals, lanes.inverses, coefficients)
                _add_rows(x, weights.offsets[start:stop], weights.added[:, c])
                save(x, gradient, start, c * gradient.class_stride)

    return jit.kernel(rows, loop.name)
