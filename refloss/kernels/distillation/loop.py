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

ROWS = 128


@dataclass(frozen=True)
class DistillationLoop(jit.Description):
    """The scalars of a divergence of softened rows.

    soften(value, highest) is e^((value − highest)/T), larger(value, highest) hands NaN on. with_mean(x, y, t, mean) is
    the distance of two logits over T, and the mean with t times that; with_excess(distance, t, mean, total) is
    t·(e^z − 1), and the total Φ with t·(e^z − 1 − z); divergence(Φ) is KL and 1/(1 + Φ); slope(growth, t, Φ, inverse,
    coefficient) is the gradient. Where Φ is not below largest, plain(x, y, t) is KL of a row, and x becomes s − t.
    """

    larger: Callable[..., Any]
    soften: Callable[..., Any]
    with_mean: Callable[..., Any]
    with_excess: Callable[..., Any]
    divergence: Callable[..., Any]
    slope: Callable[..., Any]
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
    def softmax(logits, probabilities, highest, total):
        """The softmax of logits/T class by class, [C, n]."""
        highest[:] = -np.inf
        total[:] = 0.0
        for c in range(logits.shape[0]):
            row = logits[c]
            for k in range(row.size):
                highest[k] = larger(row[k], highest[k])
        for c in range(logits.shape[0]):
            row, out = logits[c], probabilities[c]
            for k in range(row.size):
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
            highest, total = scratch[0, : stop - start], scratch[1, : stop - start]
            softmax(teacher.logits[:, start:stop], teacher.probabilities[:, start:stop], highest, total)

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


def _divergences(loop: DistillationLoop) -> Any:
    """KL(t ‖ s) of some rows; into the lanes and the scratch what their slopes are made of."""
    largest, plain, divergence = loop.largest, loop.plain, loop.divergence
    with_mean, with_excess = loop.with_mean, loop.with_excess

    @functools.partial(jit.helper, name=loop.name)
    def add_means(x, y, t, means):
        for k in range(x.size):
            x[k], means[k] = with_mean(x[k], y[k], t[k], means[k])

    @functools.partial(jit.helper, name=loop.name)
    def add_excess(x, t, means, totals):
        for k in range(x.size):
            x[k], totals[k] = with_excess(x[k], t[k], means[k], totals[k])

    @functools.partial(jit.helper, name=loop.name)
    def divergences(logits, teacher, start, lanes, scratch, values):
        means, totals, inverses = (
            scratch[0, : values.size],
            scratch[1, : values.size],
            scratch[2, : values.size],
        )
        means[:] = 0.0
        totals[:] = 0.0
        stop = start + values.size
        for c in range(logits.classes):
            x = lanes[c, : values.size]
            load(logits, start, x, c * logits.class_stride)
            add_means(x, teacher.logits[c, start:stop], teacher.probabilities[c, start:stop], means)
        for c in range(logits.classes):
            add_excess(lanes[c, : values.size], teacher.probabilities[c, start:stop], means, totals)
        for k in range(values.size):
            values[k], inverses[k] = divergence(totals[k])
        for k in range(values.size):
            if not totals[k] < largest:
                row = np.empty(logits.classes)
                load_strided(logits, row_offset(logits, start + k), logits.class_stride, row)
                values[k] = plain(row, teacher.logits[:, start + k], teacher.probabilities[:, start + k])
                lanes[: row.size, k] = row
                totals[k], inverses[k] = 0.0, 1.0

    return divergences


@jit.once
def distil(loop: DistillationLoop) -> Any:
    """The kernel for a layer's rows."""
    divergences, slope = _divergences(loop), loop.slope

    @functools.partial(jit.helper, name=loop.name)
    def slopes(x, t, totals, inverses, coefficients):
        for k in range(x.size):
            x[k] = slope(x[k], t[k], totals[k], inverses[k], coefficients[k])

    def rows(logits, gradient, teacher, weights, lanes, scratch, values, with_gradient, first, last):
        """The loss of each of rows first ... last, into values, and their gradient."""
        for start in range(first, last, ROWS):
            stop = min(start + ROWS, last)
            losses = values[start:stop]
            divergences(logits, teacher, start, lanes, scratch, losses)
            for k in range(losses.size):
                losses[k] = weights.weights[start + k] * losses[k]
            if not with_gradient:
                continue
            for c in range(logits.classes):
                x = lanes[c, : losses.size]
                coefficients, probabilities = weights.coefficients[start:stop], teacher.probabilities[c, start:stop]
                slopes(x, probabilities, scratch[1, : losses.size], scratch[2, : losses.size], coefficients)
                _add_rows(x, weights.offsets[start:stop], weights.added[:, c])
                save(x, gradient, start, c * gradient.class_stride)

    return jit.kernel(rows, loop.name)
