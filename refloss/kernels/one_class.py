"""One loop for classification losses of rows in which at most one class is meant: a sigmoid for every class.

A loss brings two scalars, for a class that is not meant and for the one that is: value and derivative. The loop works
on blocks of whole rows, with all classes alike, and then puts the few that are meant in their places.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, save
from refloss.numerics.pairs import times
from refloss.numerics.sums import add_exactly

BLOCK = 2048
NONE = -1


class Meant(NamedTuple):
    """The class of each row, NONE for none, and its box's quality: a pair in [0, 1], of each row or of all alike."""

    labels: np.ndarray  # [R] int64
    quality: np.ndarray  # [R] or [1] float64
    quality_low: np.ndarray


class Focus(NamedTuple):
    """α of a class that is meant, α of one that is not, γ."""

    own: float
    other: float
    gamma: float


class OneClassLoop(NamedTuple):
    """A loss's scalars, which each device makes a loop of: other(x, focus) and own(x, quality, focus)."""

    name: str
    other: Callable[..., Any]
    own: Callable[..., Any]


@jit.helper
def quality_of(meant, row):
    """How good a row is, a pair."""
    own_row = row if meant.quality.size > 1 else 0
    return meant.quality[own_row], meant.quality_low[own_row]


@jit.helper
def _scale(derivatives, coefficient):
    for i in range(derivatives.size):
        derivatives[i] = times(derivatives[i], coefficient)


@jit.once
def compiled(loop: OneClassLoop) -> Any:
    """The loop on the CPU."""
    name, other, own = loop

    @functools.partial(jit.helper, name=name)
    def fill(x, focus, values, derivatives):
        if focus.gamma == 2.0:
            # Known to the compiler, which leaves out what other exponents need.
            square = Focus(focus.own, focus.other, 2.0)
            for i in range(x.size):
                values[i], derivatives[i] = other(x[i], square)
        else:
            for i in range(x.size):
                values[i], derivatives[i] = other(x[i], focus)

    @functools.partial(jit.helper, name=name)
    def place(x, meant, row, place, focus, values, derivatives):
        values[place], derivatives[place] = own(x[place], quality_of(meant, row), focus)

    def evaluate(logits, gradient, classes, meant, focus, coefficient, with_gradient, limbs, first, last):
        """Write the gradient of rows first ... last and add to the limbs; the sum of what is not finite."""
        count = max(1, BLOCK // max(1, classes))
        size = count * classes
        x, values, derivatives = np.empty(size), np.empty(size), np.empty(size)
        special = 0.0
        for start in range(first, last, count):
            rows = min(count, last - start)
            size = rows * classes
            load(logits, start * classes, x[:size])
            fill(x[:size], focus, values[:size], derivatives[:size])
            for k in range(rows):
                label = meant.labels[start + k]
                if label != NONE:
                    place(x, meant, start + k, k * classes + label, focus, values, derivatives)
            special += add_exactly(values[:size], limbs)
            if with_gradient:
                _scale(derivatives[:size], coefficient)
                save(derivatives[:size], gradient, start * classes)
        return special

    return jit.kernel(evaluate, name)
