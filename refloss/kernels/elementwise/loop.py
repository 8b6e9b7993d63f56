"""One loop for every loss that is a function of corresponding elements.

A loss brings one scalar: its value as a pair and its two derivatives. The loop reads blocks of its inputs (any format,
any layout, broadcast where their strides are 0) into float64 rows that stay in the nearest cache, works there, rounds
what it writes once, and sums the values exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import AnyRows, load, save
from refloss.numerics.bits import fma
from refloss.numerics.pairs import settled, times, two_product
from refloss.numerics.sums import add_exactly

BLOCK = 2048
Pair = tuple[float, float]
# What a loop without parameters is handed: compiled code has no use for an empty tuple.
NO_PARAMETERS = (0.0,)


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

    parameters: tuple[float, ...]
    inverse_normaliser: Pair
    mean: float  # the loss that a weight's gradient is relative to
    weighted: bool
    coefficient: Pair  # cotangent over normaliser, where it is all that multiplies the derivatives; or 0


@jit.helper
def _new_rows():
    return np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)


@jit.helper
def _parts(rows, count):
    return rows[0][:count], rows[1][:count], rows[2][:count], rows[3][:count]


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
    x, t, w, factor = _parts(rows, count)
    load(inputs.input, first, x)
    load(inputs.target, first, t)
    if not _is_constant(inputs.weight):
        load(inputs.weight, first, w)
    if not _is_constant(inputs.factor):
        load(inputs.factor, first, factor)
    return x, t, w, factor


@jit.helper
def _multiply(values, weight):
    for i in range(values.size):
        values[i] *= weight[i]


@jit.scalar
def times_constant(derivative, coefficient):
    """derivative·coefficient for a pair."""
    result = times(derivative, coefficient)
    # An infinite derivative has no low part to speak of.
    return result if result == result else derivative * coefficient[0]


@jit.scalar
def times_all(derivative, weight, cotangent, inverse_normaliser):
    """derivative·weight·cotangent / normaliser."""
    weighted, weighted_low = two_product(derivative, weight)
    high, low = two_product(weighted, cotangent)
    low = fma(weighted_low, cotangent, low)
    result = fma(high, inverse_normaliser[0], fma(high, inverse_normaliser[1], low * inverse_normaliser[0]))
    return result if result == result else high * inverse_normaliser[0]


@jit.helper
def _apply_constant(derivative, coefficient):
    for i in range(derivative.size):
        derivative[i] = times_constant(derivative[i], coefficient)


@jit.helper
def _apply(derivative, weight, cotangent, inverse_normaliser):
    for i in range(derivative.size):
        derivative[i] = times_all(derivative[i], weight[i], cotangent[i], inverse_normaliser)


@jit.helper
def _save_gradient(derivative, weight, cotangent, scalars, buffer, first):
    if scalars.coefficient[0] != 0.0:
        _apply_constant(derivative, scalars.coefficient)
    else:
        _apply(derivative, weight, cotangent, scalars.inverse_normaliser)
    save(derivative, buffer, first)


@dataclass(frozen=True)
class Loop(jit.Description):
    """A loss's scalars, which each device makes a loop of.

    loss(input, target, factor, parameters) is its value as a pair, its derivative for input and that for target. Where
    is_close(input, target, factor, parameters, derivative), too few digits are left of the one for input, and
    accurate(input, target, factor, parameters) computes it again.
    """

    loss: Callable[..., Any]
    is_close: Callable[..., Any] | None = None
    accurate: Callable[..., Any] | None = None


class Task(NamedTuple):
    """An elementwise loss as its file states it; arrays are of one shape, by broadcasting where need be."""

    loop: Loop
    parameters: tuple[float, ...]
    input: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    factor: np.ndarray | None
    reduction: str
    divisor: float | None  # of "mean", the sum of the weights if None
    cotangent: np.ndarray
    input_gradient: np.ndarray | None
    target_gradient: np.ndarray | None
    weight_gradient: np.ndarray | None

    def inputs(self, elements: Callable[[np.ndarray], Any]) -> Inputs:
        """What a pass reads, as a device sees the elements of an array."""
        one = np.ones(())
        arrays = (self.input, self.target, self.weight, self.factor, self.cotangent)
        shape = self.input.shape
        return Inputs(
            *(elements(np.broadcast_to(one if array is None else array, shape, subok=True)) for array in arrays)
        )


class Pass(NamedTuple):
    """One reading of all elements: which gradients it writes, and where losses go unless they are summed."""

    task: Task
    scalars: Scalars
    rows: np.ndarray | None
    gradients: bool

    @property
    def buffers(self) -> list[np.ndarray | None]:
        """Of input's gradient, target's, weight's, and of the losses; None where nothing is written."""
        task = self.task
        gradients = [task.input_gradient, task.target_gradient, task.weight_gradient]
        return [*(buffer if self.gradients else None for buffer in gradients), self.rows]

    @property
    def wanted(self) -> Wanted:
        """What is written."""
        return Wanted(*(buffer is not None for buffer in self.buffers), total=self.rows is None)


@jit.once
def compiled(loop: Loop) -> Any:
    """The loop on the CPU."""
    loss = loop.loss
    refine = _refinement(loop)

    @functools.partial(jit.helper, name=loop.name)
    def fill_values(x, t, factor, parameters, values):
        for i in range(values.size):
            value, _, _ = loss(x[i], t[i], factor[i], parameters)
            values[i] = settled(value)

    @functools.partial(jit.helper, name=loop.name)
    def fill_all(x, t, factor, parameters, values, for_input, for_target):
        for i in range(values.size):
            value, for_input[i], for_target[i] = loss(x[i], t[i], factor[i], parameters)
            values[i] = settled(value)

    def compute_elements(inputs, outputs, wanted, scalars, limbs, first, last):
        """Write what is wanted of elements first ... last and add to the limbs; the sum of what is not finite."""
        special = 0.0
        rows, scratch, ones = _new_rows(), _new_rows(), np.ones(BLOCK)
        _load_constants(inputs, rows)
        if _is_constant(inputs.cotangent):
            load(inputs.cotangent, 0, scratch[3])
        for start in range(first, last, BLOCK):
            count = min(BLOCK, last - start)
            x, t, w, factor = _load_all(inputs, start, count, rows)
            values, for_input, for_target, cotangent = _parts(scratch, count)
            if not _is_constant(inputs.cotangent):
                load(inputs.cotangent, start, cotangent)
            if wanted.input_gradient or wanted.target_gradient:
                fill_all(x, t, factor, scalars.parameters, values, for_input, for_target)
            else:
                fill_values(x, t, factor, scalars.parameters, values)
            if wanted.input_gradient:
                refine(x, t, factor, scalars.parameters, for_input)
                _save_gradient(for_input, w, cotangent, scalars, outputs.input_gradient, start)
            if wanted.target_gradient:
                _save_gradient(for_target, w, cotangent, scalars, outputs.target_gradient, start)
            if wanted.weight_gradient:
                for_input[:] = values - scalars.mean
                _save_gradient(for_input, ones[:count], cotangent, scalars, outputs.weight_gradient, start)
            if scalars.weighted:
                _multiply(values, w)
            if wanted.loss:
                save(values, outputs.loss, start)
            if wanted.total:
                special += add_exactly(values, limbs)
        return special

    return jit.kernel(compute_elements, loop.name)


@jit.helper
def _leave(x, t, factor, parameters, derivative):
    pass


def _refinement(loop: Loop) -> Any:
    """What computes derivatives again."""
    if loop.is_close is None or loop.accurate is None:
        return _leave
    is_close, accurate = loop.is_close, loop.accurate

    @functools.partial(jit.helper, name=loop.name)
    def refine(x, t, factor, parameters, derivative):
        # Counting them first vectorises, and there are hardly ever any.
        count = 0
        for i in range(x.size):
            count += 1 if is_close(x[i], t[i], factor[i], parameters, derivative[i]) else 0
        if count == 0:
            return
        for i in range(x.size):
            if is_close(x[i], t[i], factor[i], parameters, derivative[i]):
                derivative[i] = accurate(x[i], t[i], factor[i], parameters)

    return refine
