"""Cross-entropy of many short rows: a vector of rows at a time, instead of a vector of classes.

For pixels and tokens with few classes. The classes are the outer loop and neighbouring rows the inner one. Where the
classes of a row are neighbours in memory and not very few, only what comes once a row is done for a vector of rows. The
scalars are those of kernels.softmax, and sums do not depend on order, so the bits are those of label_rows.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import AnyRows, copy, load, load_rows, save, save_rows
from refloss.kernels.softmax.loop import Output, Terms
from refloss.kernels.softmax.split import scan, split_class
from refloss.numerics.bits import fma
from refloss.numerics.exponential import exp_difference
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal
from refloss.numerics.pairs import add, divide, negate, pair, rounded, scaled, to_odd
from refloss.numerics.sums import grid_bits, grid_total

if TYPE_CHECKING:
    from refloss.kernels.softmax.loop import SoftmaxLoop

MAX_CLASSES = 128
COLUMNS = 512
# From this many classes on, a vector of classes is well filled.
ROW_CLASSES = 16
_VECTOR = 8
# So many rows of classes stay in the nearest caches.
ROWS = 64


class Lanes(NamedTuple):
    """One thread's buffers: a value for each of COLUMNS rows, and for each of their classes."""

    terms: np.ndarray  # [C, COLUMNS], or as many [COLUMNS, C], with C rounded up to whole vectors
    block: np.ndarray  # [ROWS·C], rows as they are in memory
    labels: np.ndarray  # -1 where ignored
    weights: np.ndarray
    coefficients: np.ndarray  # [2, COLUMNS], pairs
    logits: np.ndarray  # of the label
    references: np.ndarray  # the largest of the others
    overflow: np.ndarray  # a logit that is NaN or +inf, if there is one
    coarse: np.ndarray
    fine: np.ndarray
    factors: np.ndarray  # [2, COLUMNS], pairs
    at_one: np.ndarray  # the gradient of a class whose term is 1
    label_gradients: np.ndarray  # [2, COLUMNS], pairs


class _Kept(threading.local):
    """What a thread keeps for its next call: to allocate so many would take longer than a small loss."""

    lanes: Lanes | None = None


_kept = _Kept()


def lanes_of_thread(classes: int) -> Lanes:
    """This thread's buffers for rows of some classes; nothing in them outlasts a block of rows."""
    lanes = _kept.lanes
    if lanes is None or lanes.block.size != ROWS * classes:
        lanes = _kept.lanes = _new_lanes(classes)
    return lanes


def _new_lanes(classes: int) -> Lanes:
    """Buffers for rows of some classes."""

    def floats(*lead: int) -> np.ndarray:
        return np.empty((*lead, COLUMNS))

    def integers() -> np.ndarray:
        return np.empty(COLUMNS, np.int64)

    return Lanes(
        terms=floats(-(-classes // _VECTOR) * _VECTOR),
        block=np.empty(ROWS * classes),
        labels=integers(),
        weights=floats(),
        coefficients=floats(2),
        logits=floats(),
        references=floats(),
        overflow=floats(),
        coarse=integers(),
        fine=integers(),
        factors=floats(2),
        at_one=floats(),
        label_gradients=floats(2),
    )


@jit.helper
def _prepare(labels, terms, lanes, start, count):
    """Labels, weights and coefficients of the rows start ... start + count."""
    coefficient = divide(pair(terms.cotangent[0]), terms.normaliser)
    for k in range(count):
        index = start + k
        label = labels[index]
        ignored = label == terms.ignore_index
        lanes.labels[k] = -1 if ignored else label
        lanes.weights[k] = 0.0 if ignored else terms.weight[label]
        if terms.cotangent.size > 1:
            coefficient = divide(pair(terms.cotangent[index]), terms.normaliser)
        lanes.coefficients[0, k], lanes.coefficients[1, k] = coefficient
        lanes.logits[k] = -np.inf
        lanes.references[k] = -np.inf
        lanes.overflow[k] = 0.0
        lanes.coarse[k] = 0
        lanes.fine[k] = 0


@jit.helper
def _take_maximum(row, c, labels, logits, references, overflow):
    for k in range(row.size):
        is_label = labels[k] == c
        logits[k] = row[k] if is_label else logits[k]
        higher = row[k] > references[k] and not is_label
        references[k] = row[k] if higher else references[k]
        overflow[k] = overflow[k] if row[k] < np.inf else row[k]


@jit.helper
def _take_exponentials(row, c, labels, references, coarse, fine):
    for k in range(row.size):
        term = exp_difference(row[k], references[k])
        term = 0.0 if labels[k] == c or references[k] == -np.inf else term
        row[k] = term
        coarse_bits, fine_bits = grid_bits(term)
        coarse[k] += coarse_bits
        fine[k] += fine_bits


def _split_all(loop: SoftmaxLoop) -> Any:
    """The split of every row, its loss and what its gradient needs."""
    describe = loop.label

    @functools.partial(jit.helper, name=loop.name)
    def split_all(lanes, terms, count, classes, losses, nlls, lses):
        for k in range(count):
            others = grid_total(lanes.coarse[k], lanes.fine[k], classes)
            split = split_class(lanes.logits[k], lanes.references[k], others)
            sound = lanes.overflow[k] < np.inf
            defined = sound and split.maximum > -np.inf
            ignored = lanes.labels[k] < 0
            lse = rounded(add(pair(split.maximum), split.log_total))
            value, pushed, pulled = describe(split, pair(lanes.weights[k]), terms.parameters)
            nll, loss = rounded(split.nll), rounded(value)
            lses[k] = lse if defined else (-np.inf if sound else np.nan)
            nlls[k] = 0.0 if ignored else (nll if defined else np.nan)
            losses[k] = 0.0 if ignored else (loss if defined else np.nan)
            coefficient = (lanes.coefficients[0, k], lanes.coefficients[1, k])
            scale = scaled(coefficient, scaled(pushed, split.term))
            at_label = negate(scaled(coefficient, pulled))
            lanes.factors[0, k] = 0.0 if ignored else (scale[0] if defined else np.nan)
            lanes.factors[1, k] = 0.0 if ignored else (scale[1] if defined else np.nan)
            lanes.label_gradients[0, k] = 0.0 if ignored else (at_label[0] if defined else np.nan)
            lanes.label_gradients[1, k] = 0.0 if ignored else (at_label[1] if defined else np.nan)

    return split_all


@jit.helper
def _round_pairs(lanes, count, wide):
    """What is known as a pair as it is to be stored, in float64 or in a narrower format."""
    if wide:
        copy(lanes.factors[0], lanes.at_one[:count])
        return
    factors, label_gradients = lanes.factors, lanes.label_gradients
    for k in range(count):
        lanes.at_one[k] = to_odd((factors[0, k], factors[1, k]))
    for k in range(count):
        label_gradients[0, k] = to_odd((label_gradients[0, k], label_gradients[1, k]))


@jit.helper
def _finish_class(row, c, labels, high, low, at_one, label_gradients):
    for k in range(row.size):
        value = fma(row[k], high[k], row[k] * low[k])
        value = at_one[k] if row[k] == 1.0 else value
        row[k] = label_gradients[k] if labels[k] == c else (0.0 if labels[k] < 0 else value)


@jit.helper
def _load_columns(logits, lanes, start, count):
    """Class by class: exponentials relative to the largest of the others, and their sums."""
    chosen, references = lanes.labels[:count], lanes.references[:count]
    for c in range(logits.classes):
        row = lanes.terms[c][:count]
        load(logits, start, row, c * logits.class_stride)
        _take_maximum(row, c, chosen, lanes.logits[:count], references, lanes.overflow[:count])
    for c in range(logits.classes):
        _take_exponentials(lanes.terms[c][:count], c, chosen, references, lanes.coarse[:count], lanes.fine[:count])


@jit.helper
def _save_columns(gradient, lanes, start, count):
    for c in range(gradient.classes):
        row = lanes.terms[c][:count]
        high, low = lanes.factors[0][:count], lanes.factors[1][:count]
        _finish_class(row, c, lanes.labels[:count], high, low, lanes.at_one[:count], lanes.label_gradients[0][:count])
        save(row, gradient, start, c * gradient.class_stride)


@jit.helper
def _exponentials(x, reference):
    """e^(x − reference) in place; the sums of their bits on the grids."""
    coarse = 0
    fine = 0
    for i in range(x.size):
        term = exp_difference(x[i], reference)
        x[i] = term
        coarse_bits, fine_bits = grid_bits(term)
        coarse += coarse_bits
        fine += fine_bits
    return coarse, fine


@jit.helper
def _load_rows(logits, lanes, start, count, width):
    """The same row by row, where a row's classes are neighbours; rows are filled up to a width with no class."""
    terms = lanes.terms.reshape(-1)
    load_rows(logits, start, count, lanes.block)
    for k in range(count):
        x = terms[k * width : (k + 1) * width]
        copy(lanes.block[k * logits.classes :], x[: logits.classes])
        x[logits.classes :] = -np.inf
        label = lanes.labels[k]
        if label >= 0:
            lanes.logits[k] = x[label]
            x[label] = -np.inf
        highest, largest = scan(x, lowest_ordinal(x), infinity_bits(x))
        reference = from_ordinal(highest, x)
        sound = largest == infinity_bits(x) and reference < np.inf and lanes.logits[k] < np.inf
        lanes.references[k] = reference
        lanes.overflow[k] = 0.0 if sound else np.inf
        lanes.coarse[k], lanes.fine[k] = _exponentials(x, reference if reference > -np.inf else 0.0)


@jit.helper
def _scale(terms, high, low, at_one, row):
    for i in range(row.size):
        value = fma(terms[i], high, terms[i] * low)
        row[i] = at_one if terms[i] == 1.0 else value


@jit.helper
def _save_rows(gradient, lanes, start, count, width):
    terms = lanes.terms.reshape(-1)
    for k in range(count):
        row = lanes.block[k * gradient.classes : (k + 1) * gradient.classes]
        if lanes.labels[k] < 0:
            row[:] = 0.0
        else:
            _scale(terms[k * width : (k + 1) * width], lanes.factors[0, k], lanes.factors[1, k], lanes.at_one[k], row)
            row[lanes.labels[k]] = lanes.label_gradients[0, k]
    save_rows(lanes.block, gradient, start, count)


@jit.once
def label_columns(loop: SoftmaxLoop) -> Any:
    """The kernel for rows with few classes and class labels, without smoothing."""
    split_all = _split_all(loop)

    def columns(arrays, labels, terms_parts, output_parts, lanes_parts, first, last, with_gradient):
        """Rows first ... last."""
        # Plain tuples come into compiled code in a fraction of the time of named ones.
        logits, gradient = AnyRows(*arrays[0]), AnyRows(*arrays[1])
        terms, output, lanes = Terms(*terms_parts), Output(*output_parts), Lanes(*lanes_parts)
        width = lanes.terms.shape[0]
        by_rows = logits.class_stride == 1 and logits.classes >= ROW_CLASSES
        step = ROWS if by_rows else COLUMNS
        for start in range(first, last, step):
            count = min(step, last - start)
            stop = start + count
            _prepare(labels, terms, lanes, start, count)
            if by_rows:
                _load_rows(logits, lanes, start, count, width)
            else:
                _load_columns(logits, lanes, start, count)
            losses, nlls, lses = output.loss[start:stop], output.nll[start:stop], output.lse[start:stop]
            split_all(lanes, terms, count, width if by_rows else logits.classes, losses, nlls, lses)
            if with_gradient:
                _round_pairs(lanes, count, gradient.format == 0)
            if with_gradient and by_rows:
                _save_rows(gradient, lanes, start, count, width)
            elif with_gradient:
                _save_columns(gradient, lanes, start, count)

    return jit.kernel(columns, loop.name)
