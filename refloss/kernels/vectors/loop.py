"""One loop over rows of vectors: a helper of the loss says everything of a row, on the CPU and on a GPU.

A row's vectors are widened to float64 into the first lines of a scratch. The helper leaves the slopes of its loss in
the lines after them, a line of high parts and one of low parts for each vector; the rest of the scratch is its own.
Whatever it adds up it adds up on grids (numerics.sums), so that neither blocks nor a vector width show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.numerics.pairs import add, divide, pair, scaled, to_odd
from refloss.numerics.sums import long_sum, row_sum

# As many rows of vectors are handed to a kernel; those that a loss does not have are never read.
VECTORS = 3


@dataclass(frozen=True)
class VectorLoop(jit.Description):
    """What a loss brings: of_row(scratch, labels, parameters, with_slopes) is the loss of a row, a normalised pair.

    vectors: how many a row has, at most VECTORS.
    lines: of the scratch.
    """

    vectors: int
    lines: int
    of_row: Callable[..., Any]


class Given(NamedTuple):
    """What rows are given beside their vectors, and what becomes of their losses and slopes."""

    labels: np.ndarray  # [R, K] int64
    factor: np.ndarray  # [R] or [1], of each row's loss
    parameters: tuple[float, float, float, float]
    cotangent: np.ndarray  # [R] or [1]
    divisor: float  # of each row's loss
    normaliser: float  # of the slopes


@jit.helper
def total_of(high, low):
    """The sum of a row of pairs whose high parts have any size, as a pair."""
    return add(long_sum(high), row_sum(low))


@jit.scalar
def at(values, index):
    """An element of a vector that has one for each row, or one for all."""
    return values[index if values.size > 1 else 0]


@jit.scalar
def loss_of(value, given, index):
    """A row's loss, a pair, over its divisor."""
    return divide(scaled(value, pair(at(given.factor, index))), pair(given.divisor))


@jit.scalar
def coefficient_of(given, index):
    """What a row's slopes are multiplied by, a pair."""
    return divide(scaled(pair(at(given.cotangent, index)), pair(at(given.factor, index))), pair(given.normaliser))


@jit.helper
def _load(rows, index, line):
    load_strided(rows, row_offset(rows, index), rows.class_stride, line)


@jit.helper
def _save(high, low, coefficient, gradient, index):
    """Slopes times a coefficient, each rounded once."""
    for i in range(high.size):
        slope = scaled((high[i], low[i]), coefficient)
        high[i] = to_odd(slope) if gradient.format != 0 else slope[0]
    save_strided(high, gradient, row_offset(gradient, index), gradient.class_stride)


@jit.once
def compiled(loop: VectorLoop) -> Any:
    """The loop on the CPU."""
    of_row, vectors, lines = loop.of_row, loop.vectors, loop.lines

    def vector_rows(rows, gradients, wanted, given, losses, first, last):
        """Losses [2, R] of rows first ... last, as pairs, and the gradients that are wanted."""
        scratch = np.empty((lines, rows[0].classes))
        with_slopes = wanted[0] or wanted[1] or wanted[2]
        for index in range(first, last):
            _load(rows[0], index, scratch[0])
            if vectors > 1:
                _load(rows[1], index, scratch[1])
            if vectors > 2:
                _load(rows[2], index, scratch[2])
            value = of_row(scratch, given.labels[index], given.parameters, with_slopes)
            losses[0, index], losses[1, index] = loss_of(value, given, index)
            coefficient = coefficient_of(given, index)
            for k in range(vectors):
                if wanted[k]:
                    line = vectors + 2 * k
                    _save(scratch[line], scratch[line + 1], coefficient, gradients[k], index)

    return jit.kernel(vector_rows, loop.name)
