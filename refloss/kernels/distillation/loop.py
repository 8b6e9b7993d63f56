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
from refloss.kernels.rows import copy, load, load_rows, load_strided, row_offset, save, save_strided
from refloss.kernels.softmax.split import scan
from refloss.numerics.exponential import logistic
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal

ROWS = 256
# Sums of a vector of rows begin at different offsets from a page.
LANES = (8, ROWS + 8)


@dataclass(frozen=True)
class DistillationLoop(jit.Description):
    """The scalars of a divergence of softened rows.

    soften(value, highest) is e^((value − highest)/T), larger(value, highest) hands NaN on. distance(x, y) is that of
    two logits, a pair; with_mean(x, y, t, reference, mean, spread) is what it is beyond that of the reference, and the
    sums with t times it and t times its magnitude; with_excess(beyond, t, mean, total) is t·(e^z − 1), and the total Φ
    with t·(e^z − 1 − z); divergence(Φ, spread) is KL, 1/(1 + Φ) and a limit; slope(growth, t, Φ, inverse, coefficient,
    limit) is the gradient, and whether too little is left of it: then accurate(x, y) computes s − t of the row again,
    in place of x. Where Φ is not below largest, plain(x, y, t) is KL, and x becomes s − t.
    """

    larger: Callable[..., Any]
    soften: Callable[..., Any]
    distance: Callable[..., Any]
    with_mean: Callable[..., Any]
    with_excess: Callable[..., Any]
    divergence: Callable[..., Any]
    slope: Callable[..., Any]
    accurate: Callable[..., Any]
    plain: Callable[..., Any]
    largest: float


class Teacher(NamedTuple):
    """What a row should be like."""

    logits: np.ndarray  # [C, R] float64
    probabilities: np.ndarray  # [C, R] float64: softmax(logits/T)
    surest: np.ndarray  # [R] int64: a class of the highest logit


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
    def softmax(logits, probabilities, surest, highest, total):
        """The softmax of logits/T class by class, [C, n], and a class of the highest logit."""
        surest[:] = 0
        highest[:] = -np.inf
        total[:] = 0.0
        for c in range(logits.shape[0]):
            row = logits[c]
            for k in range(row.size):
                highest[k] = larger(row[k], highest[k])
        for c in range(logits.shape[0]):
            row, out = logits[c], probabilities[c]
            for k in range(row.size):
                surest[k] = c if row[k] == highest[k] else surest[k]
                out[k] = soften(row[k], highest[k])
                total[k] += out[k]
        for c in range(logits.shape[0]):
            out = probabilities[c]
            for k in range(out.size):
                out[k] /= total[k]

    def rows(logits, teacher, scratch, first, last):
        """The teacher of rows first ... last."""
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            for c in range(logits.classes):
                load(logits, start, teacher.logits[c, start:stop], c * logits.class_stride)
            part = teacher.logits[:, start:stop], teacher.probabilities[:, start:stop], teacher.surest[start:stop]
            sums = scratch[:, : stop - start]
            softmax(part[0], part[1], part[2], sums[0], sums[1])

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

    reference: np.ndarray
    reference_low: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    totals: np.ndarray
    inverses: np.ndarray
    limits: np.ndarray
    close: np.ndarray  # how many classes are


@jit.helper
def _lanes(scratch, count):
    scratch[:, :count] = 0.0
    return Lanes(
        scratch[0, :count],
        scratch[1, :count],
        scratch[2, :count],
        scratch[3, :count],
        scratch[4, :count],
        scratch[5, :count],
        scratch[6, :count],
        scratch[7, :count],
    )


def _divergences(loop: DistillationLoop) -> Any:
    """KL(t ‖ s) of some rows; into x and the lanes what their slopes are made of."""
    largest, plain, divergence = loop.largest, loop.plain, loop.divergence
    distance, with_mean, with_excess = loop.distance, loop.with_mean, loop.with_excess

    @functools.partial(jit.helper, name=loop.name)
    def add_means(x, y, t, reference, reference_low, means, spreads):
        for k in range(x.size):
            known = (reference[k], reference_low[k])
            x[k], means[k], spreads[k] = with_mean(x[k], y[k], t[k], known, means[k], spreads[k])

    @functools.partial(jit.helper, name=loop.name)
    def add_excess(x, t, means, totals):
        for k in range(x.size):
            x[k], totals[k] = with_excess(x[k], t[k], means[k], totals[k])

    @functools.partial(jit.helper, name=loop.name)
    def divergences(logits, teacher, start, x, lanes, values):
        stop = start + values.size
        for c in range(logits.classes):
            load(logits, start, x[c, : values.size], c * logits.class_stride)
        for k in range(values.size if logits.classes else 0):
            c = teacher.surest[start + k]
            lanes.reference[k], lanes.reference_low[k] = distance(x[c, k], teacher.logits[c, start + k])
        for c in range(logits.classes):
            y, t = teacher.logits[c, start:stop], teacher.probabilities[c, start:stop]
            of_row = x[c, : values.size]
            add_means(of_row, y, t, lanes.reference, lanes.reference_low, lanes.means, lanes.spreads)
        for c in range(logits.classes):
            add_excess(x[c, : values.size], teacher.probabilities[c, start:stop], lanes.means, lanes.totals)
        for k in range(values.size):
            values[k], lanes.inverses[k], lanes.limits[k] = divergence(lanes.totals[k], lanes.spreads[k])
        for k in range(values.size):
            if not lanes.totals[k] < largest:
                row = np.empty(logits.classes)
                load_strided(logits, row_offset(logits, start + k), logits.class_stride, row)
                values[k] = plain(row, teacher.logits[:, start + k], teacher.probabilities[:, start + k])
                copy(row, x[: row.size, k])
                lanes.totals[k], lanes.inverses[k], lanes.limits[k] = 0.0, 1.0, 0.0

    return divergences


def _correction(loop: DistillationLoop) -> Any:
    """What writes the gradient of a row again."""
    accurate = loop.accurate

    @functools.partial(jit.helper, name=loop.name)
    def correct(logits, gradient, teacher, weights, row):
        x = np.empty(logits.classes)
        load_strided(logits, row_offset(logits, row), logits.class_stride, x)
        accurate(x, teacher.logits[:, row])
        for c in range(x.size):
            x[c] *= weights.coefficients[row]
            if weights.offsets[row] >= 0:
                x[c] += weights.added[weights.offsets[row], c]
        save_strided(x, gradient, row_offset(gradient, row), gradient.class_stride)

    return correct


@jit.once
def distil(loop: DistillationLoop) -> Any:
    """The kernel for a layer's rows."""
    divergences, correct, slope = _divergences(loop), _correction(loop), loop.slope

    @functools.partial(jit.helper, name=loop.name)
    def slopes(x, t, totals, inverses, limits, close, coefficients):
        for k in range(x.size):
            x[k], is_close = slope(x[k], t[k], totals[k], inverses[k], coefficients[k], limits[k])
            close[k] += 1.0 if is_close else 0.0

    def rows(logits, gradient, teacher, weights, differences, scratch, values, with_gradient, first, last):
        """The loss of each of rows first ... last, into values, and their gradient."""
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            losses, lanes = values[start:stop], _lanes(scratch, stop - start)
            divergences(logits, teacher, start, differences, lanes, losses)
            for k in range(losses.size):
                losses[k] = weights.weights[start + k] * losses[k]
            if not with_gradient:
                continue
            for c in range(logits.classes):
                x, t = differences[c, : losses.size], teacher.probabilities[c, start:stop]
                coefficients = weights.coefficients[start:stop]
                slopes(x, t, lanes.totals, lanes.inverses, lanes.limits, lanes.close, coefficients)
                _add_rows(x, weights.offsets[start:stop], weights.added[:, c])
                save(x, gradient, start, c * gradient.class_stride)
            for k in range(losses.size):
                if lanes.close[k] > 0.0:
                    correct(logits, gradient, teacher, weights, start + k)

    return jit.kernel(rows, loop.name)
