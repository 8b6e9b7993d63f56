"""One loop for every loss that is a function of corresponding elements.

A loss brings three scalars: its value as a pair, its derivatives, and a bound on its size. The loop reads blocks of
its inputs (any format, any layout, broadcast where their strides are 0) into float64 rows that stay in the nearest
cache, works there, and rounds what it writes once.

Sums take two passes. The first finds the largest bound, which fixes the grids; the second puts every value on three
of them, 2^-36, 2^-72 and 2^-108 of the bound, and adds the integer counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import AnyRows, load, save
from refloss.numerics.bits import ROUND_TO_INTEGER, fma
from refloss.numerics.exponential import scale
from refloss.numerics.formats import magnitude_bits
from refloss.numerics.pairs import pair, product, settled, two_product
from refloss.numerics.sums import COARSE_MAGIC, FINE_MAGIC, grid_step

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK = 2048
FINEST_MAGIC = ROUND_TO_INTEGER * 2.0**-108
Pair = tuple[float, float]


class Inputs(NamedTuple):
    """What a loss reads, all of one shape; absent factors are a broadcast 1."""

    input: AnyRows
    target: AnyRows
    weight: AnyRows
    factor: AnyRows
    cotangent: AnyRows


class Outputs(NamedTuple):
    """What a loop writes; each has a flag, and any memory stands in for what is not wanted."""

    input_gradient: AnyRows
    target_gradient: AnyRows
    weight_gradient: AnyRows
    loss: AnyRows


class Wanted(NamedTuple):
    """Which outputs are written, and whether the loss is summed."""

    input_gradient: bool
    target_gradient: bool
    weight_gradient: bool
    loss: bool
    total: bool


class Scalars(NamedTuple):
    """What is the same for every element."""

    parameter: float
    inverse_normaliser: Pair
    mean: float  # the loss that a weight's gradient is relative to
    exponent: int  # every size is below 2^exponent


class Loops(NamedTuple):
    """The two compiled passes of a loss."""

    largest: Any
    evaluate: Any


@jit.helper
def _new_rows():
    return np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)


@jit.helper
def _is_constant(rows):
    return rows.strides[rows.shape.size - 1] == 0 and rows.shape.size == 1


@jit.helper
def _load_constants(inputs, rows):
    """Fill the rows of what is the same for every element, once."""
    if _is_constant(inputs.weight):
        load(inputs.weight, 0, rows[2])
    if _is_constant(inputs.factor):
        load(inputs.factor, 0, rows[3])


@jit.helper
def _load_all(inputs, first, count, rows):
    x, t, w, factor = rows[0][:count], rows[1][:count], rows[2][:count], rows[3][:count]
    load(inputs.input, first, x)
    load(inputs.target, first, t)
    if not _is_constant(inputs.weight):
        load(inputs.weight, first, w)
    if not _is_constant(inputs.factor):
        load(inputs.factor, first, factor)
    return x, t, w, factor


@jit.helper
def _total(values, exponent):
    """The sums of the bits of a row of values on three grids."""
    coarse, fine, finest = 0, 0, 0
    for i in range(values.size):
        bits, rest = grid_step(scale(values[i], -exponent), COARSE_MAGIC)
        coarse += bits
        bits, rest = grid_step(rest, FINE_MAGIC)
        fine += bits
        bits, rest = grid_step(rest, FINEST_MAGIC)
        finest += bits
    return coarse, fine, finest


@jit.helper
def _apply(derivative, weight, cotangent, inverse_normaliser):
    """derivative ← derivative·weight·cotangent / normaliser."""
    for i in range(derivative.size):
        high, low = two_product(derivative[i] * weight[i], cotangent[i])
        result = fma(high, inverse_normaliser[0], fma(high, inverse_normaliser[1], low * inverse_normaliser[0]))
        # An infinite derivative has no low part to speak of.
        derivative[i] = result if result == result else high * inverse_normaliser[0]


def loops(name: str, value: Callable[..., Any], derivatives: Callable[..., Any], size: Callable[..., Any]) -> Loops:
    """Compile the loops over a loss's scalars, each a function of (input, target, factor, parameter).

    value is a pair; derivatives are those for input and target; size is at least |value|, and not finite if value is
    not.
    """

    @jit.helper
    def fill_values(x, t, w, factor, parameter, values):
        for i in range(values.size):
            values[i] = settled(product(value(x[i], t[i], factor[i], parameter), pair(w[i])))

    @jit.helper
    def fill_derivatives(x, t, factor, parameter, for_input, for_target):
        for i in range(for_input.size):
            for_input[i], for_target[i] = derivatives(x[i], t[i], factor[i], parameter)

    @jit.helper
    def largest_of(x, t, w, factor, parameter, found):
        for i in range(x.size):
            bits = magnitude_bits(w[i] * size(x[i], t[i], factor[i], parameter))
            found = bits if bits > found else found
        return found

    def largest(inputs, parameter, first, last):
        """The bits of the largest |weight|·size of elements first ... last."""
        found = 0
        rows = _new_rows()
        _load_constants(inputs, rows)
        for start in range(first, last, BLOCK):
            x, t, w, factor = _load_all(inputs, start, min(BLOCK, last - start), rows)
            found = largest_of(x, t, w, factor, parameter, found)
        return found

    @jit.helper
    def write_gradients(x, t, w, factor, values, for_target, cotangent, ones, outputs, wanted, scalars, start):
        """The gradients of a block; values and for_target are room for them."""
        if wanted.input_gradient or wanted.target_gradient:
            fill_derivatives(x, t, factor, scalars.parameter, values, for_target)
        if wanted.input_gradient:
            _apply(values, w, cotangent, scalars.inverse_normaliser)
            save(values, outputs.input_gradient, start)
        if wanted.target_gradient:
            _apply(for_target, w, cotangent, scalars.inverse_normaliser)
            save(for_target, outputs.target_gradient, start)
        if wanted.weight_gradient:
            fill_values(x, t, ones, factor, scalars.parameter, values)
            values -= scalars.mean
            _apply(values, ones, cotangent, scalars.inverse_normaliser)
            save(values, outputs.weight_gradient, start)

    def evaluate(inputs, outputs, wanted, scalars, first, last):
        """Write what is wanted of elements first ... last; the sums of their bits on the grids."""
        coarse, fine, finest = 0, 0, 0
        rows, room, ones = _new_rows(), _new_rows(), np.ones(BLOCK)
        _load_constants(inputs, rows)
        if _is_constant(inputs.cotangent):
            load(inputs.cotangent, 0, room[2])
        for start in range(first, last, BLOCK):
            count = min(BLOCK, last - start)
            x, t, w, factor = _load_all(inputs, start, count, rows)
            values, for_target, cotangent = room[0][:count], room[1][:count], room[2][:count]
            fill_values(x, t, w, factor, scalars.parameter, values)
            if wanted.total:
                more_coarse, more_fine, more_finest = _total(values, scalars.exponent)
                coarse += more_coarse
                fine += more_fine
                finest += more_finest
            if wanted.loss:
                save(values, outputs.loss, start)
            if not _is_constant(inputs.cotangent):
                load(inputs.cotangent, start, cotangent)
            write_gradients(
                x, t, w, factor, values, for_target, cotangent, ones[:count], outputs, wanted, scalars, start
            )
        return coarse, fine, finest

    return Loops(jit.kernel(largest, name), jit.kernel(evaluate, name))
