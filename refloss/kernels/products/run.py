"""Exact matrix products on NumPy's BLAS: logits as pairs, and sums of pairs with a factor's rows, by blocks.

    Z_ij = Σ_k A_ik·B_jk + b_j        good to 2^-96 of Σ_k |A_ik·B_jk|
    D_ik = Σ_j G_ij·B_jk              of pairs G, rounded once; the error before is below 2^-90 of Σ_j |G_ij·B_jk|,
                                      and 2^-103 of it for each term

The bits depend on the numbers alone: matrix products are exact (numerics.slices), and what is added between them is
added as integers, or in the order of the terms. BLAS runs on as many threads as it takes; all else on refloss's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss import parallel
from refloss.kernels.products import loop
from refloss.kernels.products.loop import Rounding, Sliced
from refloss.kernels.rows import any_rows_of
from refloss.numerics.settled import PRECISIONS
from refloss.numerics.slices import BITS, CHUNK, MOST_SLICES

if TYPE_CHECKING:
    from collections.abc import Callable

# Of a row's numbers, so many and one in so many may be left for what is added apart.
_LEFT, _SHARE_LEFT = 4, 128
# Slices that pairs are cut into for results of float64, and of a narrower format.
_OF_FLOAT64, _OF_OTHERS = 4, 3
_BLOCK_ELEMENTS = 1 << 16
NOT_WRITTEN = Rounding(-1, 0, math.inf)


def rounding_to(dtype: np.dtype[Any] | None) -> Rounding:
    """That of logits that are written down in a format; None for those that are not."""
    if dtype is None:
        return NOT_WRITTEN
    return Rounding(*PRECISIONS[dtype], float(ml_dtypes.finfo(dtype).max))


def _in_blocks(work: Callable[[int, int], None], count: int, width: int) -> None:
    block = max(1, _BLOCK_ELEMENTS // max(1, width))
    parallel.run_blocks(lambda first, last, _: work(first, last), count, block, lambda: None)


class Factor:
    """A matrix of any float format and layout, [..., K], whose m rows are cut, at most `block` of them at a time."""

    def __init__(self, array: np.ndarray, block: int) -> None:
        self.rows = any_rows_of(array, array.ndim - 1)
        self.shape = math.prod(array.shape[:-1]), array.shape[-1]
        width = self.shape[1]
        # Memory that nothing is written to costs nothing.
        self._slices = np.empty(MOST_SLICES * block * width)
        self._rest = np.empty((block, width), np.int32), np.empty((block, width))
        self._numbers = np.empty((3, block), np.int64)

    def cut(self, first: int, last: int) -> Sliced:
        """Some of its rows, until others are cut."""
        count, width = last - first, self.shape[1]
        exponents, depths, rest_count = (line[:count] for line in self._numbers)
        slices = self._slices[: MOST_SLICES * count * width].reshape(MOST_SLICES, count, width)
        cut = Sliced(self.rows, first, slices, exponents, *self._rest, rest_count)
        allowed = _LEFT + width // _SHARE_LEFT
        _in_blocks(
            lambda start, stop: loop.cut_rows(start, stop, allowed, depths, cut, np.empty(width), np.empty(width)),
            count,
            width,
        )
        depth = int(depths.max(initial=1))
        cut = cut._replace(slices=cut.slices[:depth])
        if depth > depths.min(initial=depth):
            _in_blocks(lambda start, stop: loop.clear_slices(cut.slices, depths, start, stop), count, width)
        return cut


class Sums:
    """Sums [m, n] of products of slices, level by level; exact.

    Args:
        depths: how many slices the factors have at most.
        terms: of a sum, at most.
    """

    def __init__(self, depths: tuple[int, int], terms: int, shape: tuple[int, int]) -> None:
        self.shape = shape
        # A level has at most so many products of slices, each of which takes 53 bits for CHUNK terms.
        self.wide = terms * min(depths) > CHUNK
        self._levels = np.empty((sum(depths) - 1, 2 if self.wide else 1, *shape))
        self._products = np.empty(shape)
        self._begun = [False] * len(self._levels)

    @property
    def levels(self) -> np.ndarray:
        """Lower and, if there are any, upper parts of the levels that have been."""
        return self._levels[: sum(self._begun)]

    def add(self, a: np.ndarray, b: np.ndarray, level: int) -> None:
        """A product of two slices of at most CHUNK terms."""
        parts = self._levels[level]
        if self.wide and not self._begun[level]:
            parts[...] = 0.0
        if not self.wide and not self._begun[level]:
            np.matmul(a, b, out=parts[0])
        else:
            np.matmul(a, b, out=self._products)
            unit = 2.0 ** (2 - BITS * (level + 2)) if self.wide else 0.0
            _in_blocks(
                lambda first, last: loop.add_products(self._products, unit, parts[-1], parts[0], first, last),
                *self.shape,
            )
        self._begun[level] = True


def add_logits(
    left: Sliced,
    right: Sliced,
    bias: np.ndarray,
    rounding: Rounding,
    high: np.ndarray,
    low: np.ndarray,
    row: int = 0,
    column: int = 0,
) -> None:
    """Z of rows of two factors, as pairs, into high and low from a row and a column on; bias is of all right rows."""
    shape, terms = (len(left.exponents), len(right.exponents)), left.slices.shape[2]
    sums = Sums((len(left.slices), len(right.slices)), terms, shape)
    for start in range(0, max(terms, 1), CHUNK):
        part = slice(start, start + CHUNK)
        for s, a in enumerate(left.slices):
            for t, b in enumerate(right.slices):
                sums.add(a[:, part], b[:, part].T, s + t)
    _in_blocks(
        lambda first, last: loop.complete(
            sums.levels, left, right, bias, rounding, high[row:], low[row:], column, first, last
        ),
        *shape,
    )


class PairProduct:
    """D of pairs G, as blocks of the rows of B come; or of G transposed, whose columns are the rows of D.

    Args:
        high, low: G, float64 [m, n].
        exponents: of the factor's rows, all of them.
        dtype: of the result.
        width: K.
        columns: of G, if it is to be transposed.
    """

    def __init__(
        self,
        high: np.ndarray,
        low: np.ndarray,
        exponents: np.ndarray,
        dtype: np.dtype[Any],
        width: int,
        columns: tuple[int, int] | None = None,
    ) -> None:
        self.high, self.low, self.exponents = high, low, exponents
        self.transposed = columns is not None
        self.column = columns[0] if columns else 0
        count = columns[1] - columns[0] if columns else len(high)
        self.precision = PRECISIONS[dtype]
        self.reaches = np.full(count, loop.NO_REACH, np.int64)
        self.depth = _OF_FLOAT64 if dtype == np.float64 else _OF_OTHERS
        self.sums = Sums((self.depth, MOST_SLICES), len(exponents), (count, width))
        self.rests = np.empty((2, 0, 0))
        self.largest = np.zeros(width)
        _in_blocks(self._reach, count, len(exponents))

    def _reach(self, first: int, last: int) -> None:
        if self.transposed:
            loop.column_reaches(self.high, self.exponents, self.column, self.reaches, first, last)
        else:
            loop.row_reaches(self.high, self.exponents, self.reaches, first, last)

    def add(self, cut: Sliced) -> None:
        """Rows of the factor."""
        for start in range(0, len(cut.exponents), CHUNK):
            self._add(cut, start, min(start + CHUNK, len(cut.exponents)))
        having = cut.rest_count.nonzero()[0]
        if having.size:
            self._add_rests(cut, having)
        largest = sum(np.maximum(part.max(axis=0), -part.min(axis=0)) for part in cut.slices)
        np.maximum(self.largest, largest, out=self.largest)

    def _add_rests(self, cut: Sliced, having: np.ndarray) -> None:
        if not self.rests.size:
            self.rests = np.zeros((2, *self.sums.shape))
        row, column = (cut.first, self.column) if self.transposed else (0, cut.first)
        loop.raise_rests(cut, having, self.largest)
        _in_blocks(
            lambda first, last: loop.add_rests(
                self.high, self.low, row, column, self.transposed, cut, having, *self.rests, first, last
            ),
            len(self.reaches),
            int(cut.rest_count.sum()),
        )

    def _add(self, cut: Sliced, start: int, stop: int) -> None:
        inner, outer = slice(start, stop), cut.exponents[start:stop]
        row, column = (cut.first + start, self.column) if self.transposed else (0, cut.first + start)
        shifts = (outer, -self.reaches) if self.transposed else (-self.reaches, outer)
        parts = np.empty((self.depth, len(shifts[0]), len(shifts[1])))
        _in_blocks(
            lambda first, last: loop.cut_pairs(self.high, self.low, row, column, *shifts, parts, first, last),
            *parts.shape[1:],
        )
        for t, part in enumerate(parts):
            left = part.T if self.transposed else part
            for s, factor in enumerate(cut.slices):
                self.sums.add(left, factor[inner], s + t)

    def save(self, factor: Factor, result: np.ndarray, start: int) -> None:
        """Round the elements into rows start, start + 1, ... of an array, when all rows of the factor have been."""
        terms, (count, width) = len(self.exponents), self.sums.shape
        top, tail, again = np.empty((count, width)), np.empty((count, width)), np.empty((count, width), np.bool_)
        # Beside half a unit of the last slice for each term, as much for what cutting rounds.
        error = terms * 2.0 ** (1 - BITS * self.depth)
        known = self.sums.levels, self.rests, self.reaches, self.largest, error, self.precision
        _in_blocks(lambda first, last: loop.finish(*known, top, tail, again, first, last), count, width)
        if again.any():
            pairs = self.high, self.low, self.column, self.transposed
            _in_blocks(
                lambda first, last: loop.compute_again(
                    *pairs, factor.rows, again, top, tail, np.empty(terms), first, last
                ),
                width,
                terms,
            )
        rows = any_rows_of(result, result.ndim - 1)
        _in_blocks(lambda first, last: loop.save_rows_of_pairs(top, tail, rows, start, first, last), count, width)
