"""One loop for classification losses of rows in which at most one class is positive: a sigmoid for every class.

A loss brings two scalars, for a negative class and for the positive one: value and derivative. The loop works on blocks
of whole rows, with all classes as negatives, and then replaces the few that are positive.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, save
from refloss.numerics.bits import float64_bits
from refloss.numerics.pairs import scaled, times, to_odd
from refloss.numerics.sums import add_exactly

BLOCK = 2048
NONE = -1
# Those that a tie of float32, or of a narrower format, has none of.
_LAST_BITS = 2**28 - 1


class Positives(NamedTuple):
    """The positive class of each row, NONE for none, and its box's quality: a pair in [0, 1], of each row or of all."""

    labels: np.ndarray  # [R] int64
    quality: np.ndarray  # [R] or [1] float64
    quality_low: np.ndarray


class Focus(NamedTuple):
    """α of a positive class, α of a negative one, γ."""

    positive: float
    negative: float
    gamma: float


@dataclass(frozen=True)
class OneClassLoop(jit.Description):
    """A loss's scalars, which each device makes a loop of: negative(x, focus) and positive(x, quality, focus)."""

    negative: Callable[..., Any]
    positive: Callable[..., Any]


@jit.helper
def quality_of(positives, row):
    """How good a row is, a pair."""
    index = row if positives.quality.size > 1 else 0
    return positives.quality[index], positives.quality_low[index]


@jit.scalar
def times_coefficient(derivative, coefficient):
    """derivative·coefficient as a pair: of a derivative that is a short number, perhaps a tie of a format."""
    high, low = scaled((derivative, 0.0), coefficient)
    # A coefficient that is infinite has no low part to speak of.
    return high if high == high else derivative * coefficient[0], low


@jit.helper
def _scale(derivatives, coefficient, products):
    """derivatives·coefficient, each rounded to odd where it could be a tie of a narrower format."""
    short = 0
    for i in range(products.size):
        products[i] = times(derivatives[i], coefficient)
        short += 1 if float64_bits(products[i]) & _LAST_BITS == 0 else 0
    if short > 0:
        for i in range(products.size):
            products[i] = to_odd(times_coefficient(derivatives[i], coefficient))


@jit.once
def compiled(loop: OneClassLoop) -> Any:
    """The loop on the CPU."""
    negative, positive = loop.negative, loop.positive

    @functools.partial(jit.helper, name=loop.name)
    def fill(x, focus, values, derivatives):
        if focus.gamma == 2.0:
            # Known to the compiler, which leaves out what other exponents need.
            square = Focus(focus.positive, focus.negative, 2.0)
            for i in range(x.size):
                values[i], derivatives[i] = negative(x[i], square)
        else:
            for i in range(x.size):
                values[i], derivatives[i] = negative(x[i], focus)

    @functools.partial(jit.helper, name=loop.name)
    def replace(x, positives, row, offset, focus, values, derivatives):
        values[offset], derivatives[offset] = positive(x[offset], quality_of(positives, row), focus)

    def compute_classes(logits, gradient, classes, positives, focus, coefficient, with_gradient, limbs, first, last):
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
                label = positives.labels[start + k]
                if label != NONE:
                    replace(x, positives, start + k, k * classes + label, focus, values, derivatives)
            special += add_exactly(values[:size], limbs)
            if with_gradient:
                products = x[:size]
                if gradient.format == 0:
                    for i in range(size):
                        products[i] = times_coefficient(derivatives[i], coefficient)[0]
                else:
                    _scale(derivatives[:size], coefficient, products)
                save(products, gradient, start * classes)
        return special

    return jit.kernel(compute_classes, loop.name)
