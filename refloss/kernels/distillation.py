"""Rows of logits against a teacher's: see losses/distillation.py. A vector of rows at a time, class by class.

The teacher's arrays are [C, R], classes first, so that a class of neighbouring rows is a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, load_rows, load_strided, row_offset, save
from refloss.kernels.softmax import scan
from refloss.losses.distillation import TEMPERATURE
from refloss.numerics.bits import fma
from refloss.numerics.exponential import excess, exp, log, log1p, logistic
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal

ROWS = 128
# From here on the plain formulas: KL is above 460, far from cancelling, and 1/(1 + Φ) is still normal.
LARGEST = 1e200


class Teacher(NamedTuple):
    """What a row should be like."""

    logits: np.ndarray  # [C, R] float64
    probabilities: np.ndarray  # [C, R] float64: softmax(logits/T)


class Wanted(NamedTuple):
    """What the rows of a layer count."""

    weights: np.ndarray  # [R] of the loss
    coefficients: np.ndarray  # [R] of the gradient
    places: np.ndarray  # [R] where in others a row's other gradient is, −1 for none
    others: np.ndarray  # [P, C] float64, added to the gradient before it is rounded


@jit.scalar
def larger(value, highest):
    """The larger of two, NaN if the first one is."""
    return value if value > highest or value != value else highest


@jit.scalar
def softened(value, highest):
    """e^((value − highest)/T)."""
    return exp((value - highest) / TEMPERATURE)


@jit.helper
def _softmax(logits, probabilities, highest, total):
    """softmax(logits/T) class by class, [C, n]."""
    highest[:] = -np.inf
    total[:] = 0.0
    for c in range(logits.shape[0]):
        row = logits[c]
        for k in range(row.size):
            highest[k] = larger(row[k], highest[k])
    for c in range(logits.shape[0]):
        row, out = logits[c], probabilities[c]
        for k in range(row.size):
            out[k] = softened(row[k], highest[k])
            total[k] += out[k]
    for c in range(logits.shape[0]):
        out = probabilities[c]
        for k in range(out.size):
            out[k] /= total[k]


@jit.kernel
def teach(logits, teacher, room, first, last):
    """The teacher of rows first ... last."""
    for start in range(first, last, ROWS):
        stop = min(start + ROWS, last)
        for c in range(logits.classes):
            load(logits, start, teacher.logits[c, start:stop], c * logits.class_stride)
        highest, total = room[0, : stop - start], room[1, : stop - start]
        _softmax(teacher.logits[:, start:stop], teacher.probabilities[:, start:stop], highest, total)


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


@jit.scalar
def with_mean(x, y, t, mean):
    """(x − y)/T, and the mean with t times that."""
    far = (x - y) / TEMPERATURE
    return far, fma(t, far, mean)


@jit.helper
def _add_means(x, y, t, means):
    for k in range(x.size):
        x[k], means[k] = with_mean(x[k], y[k], t[k], means[k])


@jit.scalar
def with_excess(far, t, mean, total):
    """t·(e^z − 1), and the total with t·φ(z), z = far − mean."""
    growth, beyond = excess(far - mean)
    return t * growth, fma(t, beyond, total)


@jit.helper
def _add_excess(x, t, means, totals):
    for k in range(x.size):
        x[k], totals[k] = with_excess(x[k], t[k], means[k], totals[k])


@jit.scalar
def divergence_of(total):
    """KL(t ‖ s) from Φ, and 1/(1 + Φ)."""
    return log1p(total), 1.0 / (1.0 + total)


@jit.scalar
def slope(growth, t, total, inverse, coefficient):
    """coefficient·(s − t) from t·(e^z − 1)."""
    return coefficient * (fma(-t, total, growth) * inverse)


@jit.helper
def _slopes(x, t, totals, inverses, coefficients):
    for k in range(x.size):
        x[k] = slope(x[k], t[k], totals[k], inverses[k], coefficients[k])


@jit.helper
def plain_divergence(x, y, t):
    """KL(t ‖ s) of a row, by what it is; x becomes s − t."""
    highest, best = -np.inf, -np.inf
    for c in range(x.size):
        highest, best = larger(x[c], highest), larger(y[c], best)
    total, below = 0.0, 0.0
    for c in range(x.size):
        total += softened(x[c], highest)
        below += softened(y[c], best)
    divergence = log(total) - log(below)
    for c in range(x.size):
        if t[c] != 0.0:
            divergence += t[c] * (((y[c] - best) - (x[c] - highest)) / TEMPERATURE)
        x[c] = softened(x[c], highest) / total - t[c]
    return divergence


@jit.helper
def _divergences(logits, teacher, start, lanes, room, values):
    """KL(t ‖ s) of some rows; into the lanes and the room what their slopes are made of."""
    means, totals, inverses = room[0, : values.size], room[1, : values.size], room[2, : values.size]
    means[:] = 0.0
    totals[:] = 0.0
    stop = start + values.size
    for c in range(logits.classes):
        x = lanes[c, : values.size]
        load(logits, start, x, c * logits.class_stride)
        _add_means(x, teacher.logits[c, start:stop], teacher.probabilities[c, start:stop], means)
    for c in range(logits.classes):
        _add_excess(lanes[c, : values.size], teacher.probabilities[c, start:stop], means, totals)
    for k in range(values.size):
        values[k], inverses[k] = divergence_of(totals[k])
    for k in range(values.size):
        if not totals[k] < LARGEST:
            row = np.empty(logits.classes)
            load_strided(logits, row_offset(logits, start + k), logits.class_stride, row)
            values[k] = plain_divergence(row, teacher.logits[:, start + k], teacher.probabilities[:, start + k])
            lanes[: row.size, k] = row
            totals[k], inverses[k] = 0.0, 1.0


@jit.helper
def _add_others(x, places, others):
    for k in range(x.size):
        if places[k] >= 0:
            x[k] += others[places[k]]


@jit.kernel
def distil(logits, gradient, teacher, wanted, lanes, room, values, with_gradient, first, last):
    """The loss of each of rows first ... last, into values, and their gradient."""
    for start in range(first, last, ROWS):
        stop = min(start + ROWS, last)
        own = values[start:stop]
        _divergences(logits, teacher, start, lanes, room, own)
        for k in range(own.size):
            own[k] = wanted.weights[start + k] * own[k]
        if not with_gradient:
            continue
        for c in range(logits.classes):
            x = lanes[c, : own.size]
            coefficients, probabilities = wanted.coefficients[start:stop], teacher.probabilities[c, start:stop]
            _slopes(x, probabilities, room[1, : own.size], room[2, : own.size], coefficients)
            _add_others(x, wanted.places[start:stop], wanted.others[:, c])
            save(x, gradient, start, c * gradient.class_stride)
