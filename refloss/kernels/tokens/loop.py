"""One loop over rows of tokens: a scalar of the loss says everything of a token, on the CPU and on a GPU.

Up to five numbers of a token, one of each array, are widened to float64; those of tokens that do not count are not
looked at. Values and slopes are numbers with exponents (numerics.far), so that factors of any size may follow. A loss
may depend on the mean of the first array less the second over the tokens of a row that count: slopes in that mean
times the tokens' cotangents are added up, divided by their number, and added to what is each token's own.

Whatever is added up in a row is added up on grids (numerics.sums), so that neither blocks nor a vector width show.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_strided, row_offset, save_strided
from refloss.kernels.vectors.loop import total_of
from refloss.numerics import far
from refloss.numerics.exponential import scale
from refloss.numerics.pairs import divide, pair, to_odd, two_sum

# As many arrays are handed to a kernel, and as many of them may have gradients; what a loss lacks is never read.
INPUTS, SLOPES = 5, 2
# Lines of the scratch: the inputs, then a high part, a low part and an exponent of each slope and of that in the mean.
LINES = INPUTS + 3 * (SLOPES + 1)
_MEAN = INPUTS + 3 * SLOPES
# Beyond it scale has reached its end.
_REACH = 2040


@dataclass(frozen=True)
class TokenLoop(jit.Description):
    """What a loss brings: of_token(numbers, mean, parameters) is a Token.

    numbers are five float64, zeros where there are fewer arrays, and mean is a pair, 0 where none is asked for.
    inputs: how many arrays there are.
    slopes: how many of them, the first ones, may have gradients.
    has_mean: whether a mean may be asked for.
    notes: how many numbers of a token are kept beside its loss, at most three.
    """

    of_token: Callable[..., Any]
    inputs: int
    slopes: int = 1
    has_mean: bool = False
    notes: int = 0


class Token(NamedTuple):
    """Of one token: its loss, its slopes in the first two inputs and in the mean, and what is kept beside them."""

    value: tuple[float, float, int]
    first: tuple[float, float, int]
    second: tuple[float, float, int]
    of_mean: tuple[float, float, int]
    notes: tuple[float, float, float]


class Given(NamedTuple):
    """What rows are given beside their numbers, and what their slopes are multiplied by."""

    counts: np.ndarray  # [B, T] bool
    coefficients: np.ndarray  # [2, B], pairs
    cotangent: np.ndarray  # [B, T] or [1, 1]
    by_mean: bool
    parameters: tuple[float, ...]


class Results(NamedTuple):
    """What is written of every token; 0 for those that do not count."""

    values: np.ndarray  # [2, B, T], pairs
    notes: np.ndarray  # [N, B, T]


@jit.scalar
def _put(scratch, line, t, number):
    scratch[line, t], scratch[line + 1, t], scratch[line + 2, t] = number[0], number[1], np.float64(number[2])


@jit.scalar
def _get(scratch, line, t):
    return scratch[line, t], scratch[line + 1, t], np.int64(scratch[line + 2, t])


@jit.scalar
def difference(a, b):
    """a − b, a pair without error; by the float rules where that is not finite."""
    high, low = two_sum(a, -b)
    return high, low if abs(high) < np.inf else 0.0


@jit.helper
def _count(counts):
    count = 0
    for t in range(counts.size):
        count += 1 if counts[t] else 0
    return count


@jit.helper
def _mean_of(scratch, counts):
    """The mean of the first array less the second over the tokens that count, a pair."""
    for t in range(counts.size):
        apart = difference(scratch[0, t], scratch[1, t])
        scratch[_MEAN, t], scratch[_MEAN + 1, t] = apart[0] if counts[t] else 0.0, apart[1] if counts[t] else 0.0
    total = total_of(scratch[_MEAN], scratch[_MEAN + 1])
    return divide(total, pair(np.float64(max(_count(counts), 1))))


@jit.helper
def _upstream(given, row, t):
    """The cotangent of a token's loss, beside what all of its row have in common."""
    shape = given.cotangent.shape
    return far.number(given.cotangent[row if shape[0] > 1 else 0, t if shape[1] > 1 else 0])


@jit.helper
def _shared(scratch, row, given):
    """The mean of the slopes in the mean times their cotangents, over the tokens that count."""
    counts, largest = given.counts[row], far.LEAST
    for t in range(counts.size):
        if counts[t]:
            _put(scratch, _MEAN, t, far.multiply(_get(scratch, _MEAN, t), _upstream(given, row, t)))
        _, _, exponent = _get(scratch, _MEAN, t)
        largest = exponent if exponent > largest else largest
    for t in range(counts.size):
        high, low, exponent = _get(scratch, _MEAN, t)
        apart = max(exponent - largest, -_REACH)
        scratch[_MEAN, t], scratch[_MEAN + 1, t] = scale(high, apart), scale(low, apart)
    total = total_of(scratch[_MEAN], scratch[_MEAN + 1])
    high, low = divide(total, pair(np.float64(max(_count(counts), 1))))
    return high, low, far.LEAST if high == 0.0 else largest


@jit.helper
def _finish(scratch, line, added, row, given):
    """Slopes times their cotangents, and what is added to each, times the row's coefficient: normalised pairs."""
    counts = given.counts[row]
    of_row = far.from_pair((given.coefficients[0, row], given.coefficients[1, row]))
    for t in range(counts.size):
        high, low = 0.0, 0.0
        if counts[t]:
            slope = far.add(far.multiply(_get(scratch, line, t), _upstream(given, row, t)), added)
            high, low = far.as_pair(far.multiply(slope, of_row))
        scratch[line, t], scratch[line + 1, t] = high, low


@jit.once
def work(loop: TokenLoop) -> Any:
    """A helper for one row, whose numbers are in the first lines of the scratch."""
    of_token, slopes, has_mean = loop.of_token, loop.slopes, loop.has_mean

    @functools.partial(jit.helper, name=loop.name)
    def of_row(scratch, row, given, results, with_slopes):
        """Losses and notes of the row's tokens are written; slopes, finished, into the lines after the inputs."""
        counts, mean = given.counts[row], pair(0.0)
        if has_mean and given.by_mean:
            mean = _mean_of(scratch, counts)
        for t in range(counts.size):
            if not counts[t]:
                results.values[0, row, t], results.values[1, row, t] = 0.0, 0.0
                for k in range(results.notes.shape[0]):
                    results.notes[k, row, t] = 0.0
                if has_mean:
                    _put(scratch, _MEAN, t, far.ZERO)
                continue
            numbers = scratch[0, t], scratch[1, t], scratch[2, t], scratch[3, t], scratch[4, t]
            token = of_token(numbers, mean, given.parameters)
            results.values[0, row, t], results.values[1, row, t] = far.as_pair(token.value)
            for k in range(results.notes.shape[0]):
                results.notes[k, row, t] = token.notes[k]
            _put(scratch, INPUTS, t, token.first)
            if slopes > 1:
                _put(scratch, INPUTS + 3, t, token.second)
            if has_mean:
                _put(scratch, _MEAN, t, token.of_mean)
        if with_slopes:
            shared = far.ZERO
            if has_mean and given.by_mean:
                shared = _shared(scratch, row, given)
            _finish(scratch, INPUTS, shared, row, given)
            if slopes > 1:
                _finish(scratch, INPUTS + 3, far.ZERO, row, given)

    return of_row


@jit.helper
def _save(high, low, gradient, row):
    if gradient.format != 0:
        for t in range(high.size):
            high[t] = to_odd((high[t], low[t]))
    save_strided(high, gradient, row_offset(gradient, row), gradient.class_stride)


@jit.once
def compiled(loop: TokenLoop) -> Any:
    """The loop on the CPU."""
    of_row, inputs, slopes = work(loop), loop.inputs, loop.slopes

    def token_rows(rows, gradients, wanted, given, results, first, last):
        """Losses and notes of rows first ... last, and the gradients that are wanted."""
        scratch = np.zeros((LINES, given.counts.shape[1]))
        with_slopes = wanted[0] or wanted[1]
        for row in range(first, last):
            for k in range(inputs):
                load_strided(rows[k], row_offset(rows[k], row), rows[k].class_stride, scratch[k])
            of_row(scratch, row, given, results, with_slopes)
            for k in range(slopes):
                if wanted[k]:
                    line = INPUTS + 3 * k
                    _save(scratch[line], scratch[line + 1], gradients[k], row)

    return jit.kernel(token_rows, loop.name)
