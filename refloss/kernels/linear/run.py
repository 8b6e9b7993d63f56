"""Losses of rows of a linear layer's logits: from arrays to kernels and back, by blocks of rows and of classes.

First rows, a block at a time: the logits of all classes, as pairs; what is to be known of each row, its loss, and the
gradient of its hidden state. Then classes, a block at a time, with all rows: logits again, unless all rows were one
block, and the gradients of weights and bias. No block needs more than BUDGET bytes, or what one row or one class needs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss import parallel
from refloss.kernels.products.loop import Rounding, Sliced, column_sums, save_rows_of_pairs
from refloss.kernels.products.run import Factor, PairProduct, add_logits
from refloss.kernels.rows import any_rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.kernels.linear.rows import RowLoss

# Bytes that pairs of a block and sums of products take, at most; slices of a factor, at most.
BUDGET, SLICES_BUDGET = 1 << 28, 1 << 26
# What a pair takes; an element of sums of products, with all that it may need; a number of a factor that is cut.
_PAIR, _ELEMENT, _CUT = 16, 160, 44
# More classes at a time make no matrix product faster.
_MOST_CLASSES, _MOST_COLUMNS = 1024, 256


class LinearTask(NamedTuple):
    """A loss of each row of X·Wᵀ + b; gradients are written into arrays where there are any."""

    loss: RowLoss
    hidden: np.ndarray  # [..., K], N rows in all
    weight: np.ndarray  # [V, K]; with places their weights one after the other
    bias: np.ndarray  # [V] float64, or none
    rounding: Rounding
    hidden_gradient: np.ndarray | None  # [..., K]
    weight_gradient: np.ndarray | None
    bias_gradient: np.ndarray | None

    @property
    def wants_gradient(self) -> bool:
        """Whether any gradient is to be computed."""
        ours = self.hidden_gradient, self.weight_gradient, self.bias_gradient
        return self.loss.wants_gradient or any(gradient is not None for gradient in ours)

    @property
    def wants_classes(self) -> bool:
        """Whether a gradient of classes is."""
        return self.weight_gradient is not None or self.bias_gradient is not None


class Sizes(NamedTuple):
    """How much is done at a time."""

    rows: int
    classes: int  # of the weights that are cut
    states: int  # of the hidden states that are cut
    columns: int  # classes of a block of gradients


def run_rows(task: LinearTask) -> None:
    """Run a task; its loss has the answer."""
    _Pass(task, sizes_of(task)).run()


def sizes_of(task: LinearTask) -> Sizes:
    """Those that the budget allows. The bits of a result do not depend on them."""
    (count, width), classes = _matrix_shape(task.hidden), len(task.weight)
    of_row = _PAIR * classes + _ELEMENT * width
    rows = max(1, min(count, BUDGET // max(1, of_row)))
    cut = max(1, SLICES_BUDGET // max(1, _CUT * width))
    recomputed = 0 if rows >= count else _PAIR * count
    columns = BUDGET // 4 // max(1, _ELEMENT * width + recomputed)
    return Sizes(
        rows, max(1, min(classes, cut, _MOST_CLASSES)), max(1, min(count, cut)), max(1, min(columns, _MOST_COLUMNS))
    )


def _matrix_shape(array: np.ndarray) -> tuple[int, int]:
    return math.prod(array.shape[:-1]), array.shape[-1]


def _spans(size: int, step: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + step, size)) for first in range(0, size, step))


class _Pass:
    """What a task is computed with."""

    def __init__(self, task: LinearTask, sizes: Sizes) -> None:
        self.task, self.sizes = task, sizes
        (self.count, self.width), self.classes = _matrix_shape(task.hidden), len(task.weight)
        self.hidden = Factor(task.hidden, sizes.states)
        self.weight = Factor(task.weight, max(sizes.classes, sizes.columns))
        self._cut: tuple[int, int, Sliced] | None = None
        self.exponents = np.empty(self.classes, np.int64), np.empty(self.count, np.int64)

    def run(self) -> None:
        """All of it."""
        in_one = self.sizes.rows >= self.count
        high, low = np.empty((2, min(self.sizes.rows, self.count), self.classes))
        blocks = -(-self.classes // self.sizes.classes)
        of_rows = -(-self.count // self.sizes.rows) * (blocks * (2 if self.task.hidden_gradient is not None else 1))
        of_classes = len([*self._columns()]) if self.task.wants_classes else 0
        with parallel.steps(of_rows + of_classes) as done:
            for first, last in _spans(self.count, self.sizes.rows):
                self._rows(first, last, high[: last - first], low[: last - first], done)
            if self.task.wants_classes:
                self._all_classes(high, low, in_one, done)

    def _columns(self) -> Iterator[tuple[int, int, int]]:
        """Places, and spans of the classes of each."""
        places = self.task.loss.places
        size = self.classes // max(1, places)
        for place in range(places):
            for start, stop in _spans(size, self.sizes.columns):
                yield place, place * size + start, place * size + stop

    def _cut_hidden(self, first: int, last: int) -> Sliced:
        """Hidden states; the last ones are kept."""
        if self._cut is None or self._cut[:2] != (first, last):
            self._cut = first, last, self.hidden.cut(first, last)
            self.exponents[1][first:last] = self._cut[2].exponents
        return self._cut[2]

    def _add_logits(self, rows: tuple[int, int], right: Sliced, high: np.ndarray, low: np.ndarray, column: int) -> None:
        for first, last in _spans(rows[1] - rows[0], self.sizes.states):
            left = self._cut_hidden(rows[0] + first, rows[0] + last)
            add_logits(left, right, self.task.bias, self.task.rounding, high, low, first, column)

    def _rows(self, first: int, last: int, high: np.ndarray, low: np.ndarray, done: Callable[[], None]) -> None:
        """Losses of rows, and the gradient of their hidden states; gradients of their logits are left in high, low."""
        for start, stop in _spans(self.classes, self.sizes.classes):
            right = self.weight.cut(start, stop)
            self.exponents[0][start:stop] = right.exponents
            self._add_logits((first, last), right, high, low, start)
            done()
        self.task.loss.whole_rows(first, high, low, wanted=self.task.wants_gradient)
        gradient = self.task.hidden_gradient
        if gradient is None:
            return
        product = PairProduct(high, low, self.exponents[0], gradient.dtype, self.width)
        for start, stop in _spans(self.classes, self.sizes.classes):
            product.add(self.weight.cut(start, stop))
            done()
        product.save(self.weight, gradient, first)
        ignored = self.task.loss.ignored()
        if ignored is not None:
            # What does not count has the gradient 0 beside weights that are no numbers as well.
            these = np.zeros(self.count, bool)
            these[first:last] = ignored[first:last]
            gradient[these.reshape(gradient.shape[:-1])] = 0

    def _all_classes(self, high: np.ndarray, low: np.ndarray, in_one: bool, done: Callable[[], None]) -> None:
        for place, start, stop in self._columns():
            if in_one:
                self._classes(high, low, start, start, stop, place)
            else:
                block = np.empty((2, self.count, stop - start))
                right = self.weight.cut(start, stop)
                self._add_logits((0, self.count), right, *block, 0)
                self.task.loss.some_classes(start, *block)
                self._classes(*block, 0, start, stop, place)
            done()

    def _classes(self, high: np.ndarray, low: np.ndarray, column: int, start: int, stop: int, place: int) -> None:
        """Gradients of the weights and biases of classes, from gradients of logits."""
        size = stop - start
        if self.task.bias_gradient is not None:
            sums = np.zeros((2, 1, size))
            column_sums(high, low, column, sums[0, 0], sums[1, 0], 0, size)
            save_rows_of_pairs(*sums, any_rows_of(self.task.bias_gradient[None, start:stop], 1), 0, 0, 1)
        gradient = self.task.weight_gradient
        if gradient is None:
            return
        product = PairProduct(high, low, self.exponents[1], gradient.dtype, self.width, (column, column + size))
        ignored = self.task.loss.ignored(place)
        for first, last in _spans(self.count, self.sizes.states):
            cut = self._cut_hidden(first, last)
            if ignored is not None:
                # What does not count has the gradient 0, and no infinite number is multiplied by it.
                cut = cut._replace(rest_count=np.where(ignored[first:last], 0, cut.rest_count))
            product.add(cut)
        product.save(self.hidden, gradient, start)
