"""How the errors of a tensor are spread, found block by block: nothing as large as the tensor is kept.

Errors and bounds are counted on a scale of powers of ten. Where a tensor fails, the largest error ÷ bound is kept for
each cell of a grid of rows and columns.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from refloss.testing.spacing import Elements, Errors

PER_DECADE = 10
LOW, HIGH = -2, 40  # powers of ten, in ulp
MOST = 10  # elements that are kept
ROWS, COLUMNS = 96, 160  # of a grid


class Counts(NamedTuple):
    """How many values are 0, in each bin from 10^LOW on, and infinite."""

    zero: int
    bins: np.ndarray
    infinite: int

    @property
    def high(self) -> int:
        """The power of ten up to which there are some."""
        used = np.flatnonzero(self.bins)
        return LOW + math.ceil((int(used[-1]) + 1) / PER_DECADE) if used.size else LOW

    def coarse(self, low: int, high: int, per_decade: int) -> np.ndarray:
        """The same in wider bins from 10^low to 10^high; what is outside is in the first or the last."""
        found = np.zeros((high - low) * per_decade, int)
        places = (np.arange(self.bins.size) + (LOW - low) * PER_DECADE) * per_decade // PER_DECADE
        np.add.at(found, np.clip(places, 0, found.size - 1), self.bins)
        return found


@dataclass(frozen=True)
class Element:
    """Where an element is, what came, what was expected, how far off it may be, and how far it is."""

    index: tuple[int, ...]
    got: float
    expected: float
    allowed: float
    ulp: float
    ratio: float  # error ÷ bound; infinite where a value is not finite and should be, or the other way round


class Grid(NamedTuple):
    """The largest error ÷ bound of each cell of a tensor, laid out as rows and columns by an order of its axes."""

    cells: np.ndarray
    order: tuple[int, ...]
    rows: int
    columns: int


@dataclass(frozen=True)
class Spread:
    """Of all elements of a tensor."""

    shape: tuple[int, ...]
    above: int  # how many are above their bounds
    errors: Counts
    errors_above: Counts
    bounds: Counts
    least_bound: float  # finite and positive, in ulp; infinite if none is
    largest_bound: float
    worst: tuple[Element, ...]
    grid: Grid | None = None

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)


class _Counting:
    """Counts values as they come."""

    def __init__(self) -> None:
        self.zero = self.infinite = 0
        self.bins = np.zeros((HIGH - LOW) * PER_DECADE, int)

    def add(self, values: np.ndarray) -> None:
        if not values.size:
            return
        positive = values[(values > 0) & (values < np.inf)]
        if positive.size:
            places = ((np.log10(positive) - LOW) * PER_DECADE).astype(int)
            np.minimum(np.maximum(places, 0, out=places), self.bins.size - 1, out=places)
            self.bins += np.bincount(places, minlength=self.bins.size)
        self.zero += int(np.count_nonzero(values == 0))
        self.infinite += int(np.count_nonzero(values == np.inf))

    def counts(self) -> Counts:
        used = np.flatnonzero(self.bins)
        return Counts(self.zero, self.bins[: used[-1] + 1 if used.size else 0].copy(), self.infinite)


class Spreading:
    """Takes in the elements of a tensor, block by block in C order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape, self._first, self._above = shape, 0, 0
        self._errors, self._errors_above, self._bounds = _Counting(), _Counting(), _Counting()
        self._least, self._largest = math.inf, 0.0
        self._worst: list[tuple[float, int, Element]] = []
        self.ulp = 0.0

    def add(self, given: Elements, off: Errors) -> None:
        """The next block, and its errors."""
        above = off.ratio > 1
        self._above += int(np.count_nonzero(above))
        for counting, values in (
            (self._errors, off.error),
            (self._errors_above, off.error[above]),
            (self._bounds, off.bound),
        ):
            counting.add(values)
        bounds = off.bound[np.isfinite(off.bound) & (off.bound > 0)]
        self._least = min(self._least, float(bounds.min(initial=np.inf)))
        self._largest = max(self._largest, float(bounds.max(initial=0.0)))
        self.ulp = max(self.ulp, float(off.error.max(initial=0.0)))
        self._keep_worst(given, off)
        self._first += off.ratio.size

    def _keep_worst(self, given: Elements, off: Errors) -> None:
        count = min(MOST, off.ratio.size)
        if not count:
            return
        places = np.argpartition(-off.ratio, count - 1)[:count]
        flat = self._first + places
        axes = np.unravel_index(flat, self._shape) if self._shape else ()
        numbers = (given.got, given.right, given.allowed, off.error, off.ratio)
        columns = zip(*(array[places].tolist() for array in numbers), strict=True)
        indices = zip(*(axis.tolist() for axis in axes), strict=True) if self._shape else [()]
        for place, index, values in zip(flat.tolist(), indices, columns, strict=True):
            element = Element(index, *values)
            (heapq.heappush if len(self._worst) < MOST else heapq.heappushpop)(
                self._worst, (element.ratio, -place, element)
            )

    def spread(self, grid: Grid | None = None) -> Spread:
        """What was found."""
        worst = tuple(element for *_, element in sorted(self._worst, reverse=True))
        errors, above, bounds = (each.counts() for each in (self._errors, self._errors_above, self._bounds))
        return Spread(self._shape, self._above, errors, above, bounds, self._least, self._largest, worst, grid)


class Gridding:
    """Takes in error ÷ bound of a tensor's elements, block by block in C order."""

    def __init__(self, shape: tuple[int, ...], order: tuple[int, ...]) -> None:
        # A single number is a row of one.
        self._shape, self._order, self._first = shape or (1,), order or (0,), 0
        self._lengths = tuple(self._shape[axis] for axis in self._order)
        self._columns = self._lengths[-1]
        self._rows = math.prod(self._lengths[:-1])
        self._cells = np.zeros((min(self._rows, ROWS), min(self._columns, COLUMNS)))

    def add(self, ratio: np.ndarray) -> None:
        """The next block."""
        if ratio.size == self._rows * self._columns and self._cells.size == ratio.size:
            # A cell for each element.
            self._cells[...] = ratio.reshape(self._shape).transpose(self._order).reshape(self._cells.shape)
            return
        index = np.unravel_index(np.arange(self._first, self._first + ratio.size), self._shape)
        self._first += ratio.size
        row = np.zeros(ratio.size, int)
        for axis, length in zip(self._order[:-1], self._lengths[:-1], strict=True):
            row = row * length + index[axis]
        cells = _cell(row, self._rows, ROWS), _cell(index[self._order[-1]], self._columns, COLUMNS)
        np.maximum.at(self._cells, cells, ratio)

    def grid(self) -> Grid:
        """What was found."""
        return Grid(self._cells, self._order, self._rows, self._columns)


def _cell(index: np.ndarray, count: int, most: int) -> np.ndarray:
    """Which of at most so many cells an index is in: the largest i with i·count // most ≤ index."""
    return index if count <= most else ((index + 1) * most - 1) // count


def class_last(shape: tuple[int, ...], class_axis: int | None) -> tuple[int, ...]:
    """An order of axes whose last one is that of the classes, where a tensor has classes on axis 1 of several."""
    last = 1 if class_axis == 1 and len(shape) > 2 else len(shape) - 1
    return (*(axis for axis in range(len(shape)) if axis != last), last) if shape else ()
