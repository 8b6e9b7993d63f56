"""One loop for every loss that is a function of corresponding elements.

A loss brings one scalar: its value and its two derivatives, as pairs. The loop reads blocks of its inputs (any format,
any layout, broadcast where their strides are 0) into float64 rows that stay in the nearest cache, works there, rounds
what it writes once, from the pair, and sums the values exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import AnyRows, load, save, save_pairs
from refloss.numerics.bits import float64_bits, float64_from_bits
from refloss.numerics.formats import magnitude_bits, uncounted
from refloss.numerics.pairs import add, negate, normalised, pair, scaled, scaled_to_odd
from refloss.numerics.products import far_product, significand
from refloss.numerics.sums import add_exactly, deposit_short, exponent_of, short_counts, short_magics

# Few enough terms for a short sum.
BLOCK = 2048
# Rows begin at different offsets from a page: where they do not, a load waits for a store to another row.
_PITCH = BLOCK + 40
Pair = tuple[float, float]
# What a loop without parameters is handed: compiled code has no use for an empty tuple.
NO_PARAMETERS = (0.0,)
# Products of derivative, weight and cotangent within these are normal numbers with normal low parts.
_NEAR, _FAR = 2.0**-900, 2.0**1000
# What the errors of two pairs, of 2^-100 each, leave of a difference that is 0.
_NOTHING = 2.0**-96
# How many powers of two above the largest value of a block the grids of the next ones reach, and what their exponents
# may be.
_MARGIN, _GRIDS = 2, 800


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


@jit.helper
def _named(inputs, outputs):
    """Inputs and outputs from plain tuples, which come into compiled code in a fraction of the time."""
    return (
        Inputs(AnyRows(*inputs[0]), AnyRows(*inputs[1]), AnyRows(*inputs[2]), AnyRows(*inputs[3]), AnyRows(*inputs[4])),
        Outputs(AnyRows(*outputs[0]), AnyRows(*outputs[1]), AnyRows(*outputs[2]), AnyRows(*outputs[3])),
    )


class Wanted(NamedTuple):
    """Which outputs are written, whether the loss is summed, and whether the low parts of its elements are, too."""

    input_gradient: bool
    target_gradient: bool
    weight_gradient: bool
    loss: bool
    total: bool
    whole_total: bool


class Scalars(NamedTuple):
    """What is the same for every element."""

    parameters: tuple[float, ...]
    steepness: float  # of the loss's derivatives
    inverse: Pair  # of the normaliser, over 2^exponent
    exponent: int
    mean: Pair  # the loss that a weight's gradient is relative to
    weighted: bool
    coefficient: Pair  # steepness·cotangent/normaliser, where that is all that multiplies the derivatives; or 0


class Counted(NamedTuple):
    """A block's values on the two grids of a short sum, as if all were below the power of two that belongs to them."""

    coarse: int
    fine: int
    largest: float
    whole: bool  # whether the grids leave nothing of them, and they are the values


class Rows(NamedTuple):
    """One thread's float64 rows: what is read, the values and their slopes, whose low parts are rows of their own."""

    x: np.ndarray
    t: np.ndarray
    weight: np.ndarray
    factor: np.ndarray
    cotangent: np.ndarray
    values: np.ndarray
    values_low: np.ndarray
    for_input: np.ndarray
    for_input_low: np.ndarray
    for_target: np.ndarray
    for_target_low: np.ndarray


@jit.helper
def _new_rows():
    return np.empty((11, _PITCH))


@jit.helper
def _first(rows, count):
    """The first elements of all rows."""
    return Rows(
        rows[0, :count],
        rows[1, :count],
        rows[2, :count],
        rows[3, :count],
        rows[4, :count],
        rows[5, :count],
        rows[6, :count],
        rows[7, :count],
        rows[8, :count],
        rows[9, :count],
        rows[10, :count],
    )


@jit.helper
def _is_constant(rows):
    return rows.strides[rows.shape.size - 1] == 0 and rows.shape.size == 1


@jit.helper
def _load_constants(inputs, first, rows):
    """Fill the rows of what is the same for every element, once."""
    if _is_constant(inputs.weight):
        load(inputs.weight, first, rows.weight)
    if _is_constant(inputs.factor):
        load(inputs.factor, first, rows.factor)
    if _is_constant(inputs.cotangent):
        load(inputs.cotangent, first, rows.cotangent)


@jit.helper
def _load_all(inputs, first, rows):
    load(inputs.input, first, rows.x)
    load(inputs.target, first, rows.t)
    if not _is_constant(inputs.weight):
        load(inputs.weight, first, rows.weight)
    if not _is_constant(inputs.factor):
        load(inputs.factor, first, rows.factor)
    if not _is_constant(inputs.cotangent):
        load(inputs.cotangent, first, rows.cotangent)


@jit.scalar
def times_all(derivative, weight, cotangent, steepness, scalars):
    """derivative·weight·cotangent·steepness / normaliser, a pair; steepness is a power of two."""
    product = scaled(scaled(derivative, pair(weight)), pair(cotangent))
    return scaled(product, (steepness * scalars.inverse[0], steepness * scalars.inverse[1]))


@jit.scalar
def is_far(derivative, weight, cotangent, scalars):
    """Whether products on the way leave the range in which pairs are pairs, although no factor is 0."""
    weighted = abs(derivative[0] * weight)
    near = weighted > _NEAR and weighted < _FAR
    weighted *= abs(cotangent)
    near = near and weighted > _NEAR and weighted < _FAR and scalars.exponent == 0
    return not near and derivative[0] != 0.0 and weight != 0.0 and cotangent != 0.0


@jit.helper
def times_far(derivative, weight, cotangent, steepness, scalars):
    """The same for factors of any size, by their significands and exponents."""
    inverse = (steepness * scalars.inverse[0], steepness * scalars.inverse[1])
    return far_product(derivative, weight, cotangent, inverse, scalars.exponent)


@jit.helper
def _apply_constant(high, low, coefficient, narrow):
    for i in range(high.size):
        value = (high[i], low[i])
        high[i] = scaled_to_odd(value, coefficient) if narrow else scaled(value, coefficient)[0]


@jit.helper
def _shift(high, power):
    for i in range(high.size):
        high[i] *= power


@jit.helper
def _are_exact(low):
    some = 0
    for i in range(low.size):
        some |= float64_bits(low[i])
    return some << 1 == 0


@jit.helper
def _add_values(values, counted, exponent, limbs):
    """Add a block's values to the accumulator; the sum of what is not finite, and the exponent of the next block."""
    if counted.whole and exponent_of(counted.largest) <= exponent:
        deposit_short(counted.coarse, counted.fine, exponent, limbs)
        return 0.0, exponent
    # The next blocks are likely to be as this one.
    nearer = exponent_of(counted.largest) + _MARGIN
    return add_exactly(values, limbs), nearer if abs(nearer) <= _GRIDS else exponent


@jit.scalar
def _is_power_of_two(coefficient):
    return coefficient[1] == 0.0 and significand(coefficient[0])[0] in (1.0, -1.0)


@jit.helper
def _apply(high, low, weight, cotangent, steepness, scalars):
    far = 0
    for i in range(high.size):
        far += 1 if is_far((high[i], low[i]), weight[i], cotangent[i], scalars) else 0
    if far == 0:
        for i in range(high.size):
            high[i], low[i] = times_all((high[i], low[i]), weight[i], cotangent[i], steepness, scalars)
        return
    for i in range(high.size):
        derivative = (high[i], low[i])
        if is_far(derivative, weight[i], cotangent[i], scalars):
            high[i], low[i] = times_far(derivative, weight[i], cotangent[i], steepness, scalars)
        else:
            high[i], low[i] = times_all(derivative, weight[i], cotangent[i], steepness, scalars)


@jit.helper
def _save_gradient(high, low, weight, cotangent, scalars, buffer, first):
    if scalars.coefficient[0] != 0.0:
        if _is_power_of_two(scalars.coefficient) and _are_exact(low):
            _shift(high, scalars.coefficient[0])
        else:
            _apply_constant(high, low, scalars.coefficient, buffer.format != 0)
        save(high, buffer, first, 0)
    else:
        _apply(high, low, weight, cotangent, scalars.steepness, scalars)
        save_pairs(high, low, buffer, first)


@jit.scalar
def above_mean(value, mean):
    """A value less the mean, 0 where their errors are all that is left."""
    difference = add(value, negate(mean))
    return difference if not abs(difference[0]) < _NOTHING * abs(mean[0]) else pair(0.0)


@jit.helper
def _save_weight_gradient(rows, scalars, buffer, first):
    """c·(value − mean), which no weight multiplies; in the rows of input's gradient."""
    high, low, ones = rows.for_input, rows.for_input_low, rows.for_target
    for i in range(high.size):
        high[i], low[i] = above_mean((rows.values[i], rows.values_low[i]), scalars.mean)
        ones[i] = 1.0
    _apply(high, low, ones, rows.cotangent, 1.0, scalars)
    save_pairs(high, low, buffer, first)


@jit.helper
def _weigh(rows):
    for i in range(rows.values.size):
        value = (rows.values[i], rows.values_low[i])
        rows.values[i], rows.values_low[i] = scaled(value, pair(rows.weight[i]))


@dataclass(frozen=True)
class Loop(jit.Description):
    """A loss's scalars, which each device makes a loop of.

    loss(input, target, factor, parameters) is its value, its derivative for input and that for target: three pairs, of
    which the derivatives are those over steepness, a power of two. is_close(input, target, factor, parameters, value,
    for_input, for_target), of float64, is whether too few digits are left of each of the three; accurate(input, target,
    factor, parameters) computes them again. A loss whose elements have both signs is signed: their sum may be less than
    their rounding errors.
    """

    loss: Callable[..., Any]
    is_close: Callable[..., Any] | None = None
    accurate: Callable[..., Any] | None = None
    steepness: float = 1.0
    signed: bool = False


# What stands for an absent factor.
_ONE = np.ones(())


class Apart(NamedTuple):
    """A gradient that takes a pass of its own: a factor's, or that of an array whose numbers elements share.

    It has the axes of the elements, with one number for all of them along some axes where they share it.
    """

    loop: Loop  # whose derivative for input it is; of what is shared, whose value, of which for_target is the low part
    gradient: np.ndarray
    sign: int = 1  # of what is shared


class Task(NamedTuple):
    """An elementwise loss as its file states it; arrays are of one shape, or a cotangent without axes."""

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
    apart: tuple[Apart, ...] = ()

    def of(self, apart: Apart) -> Task:
        """What is left to do for a gradient that no weight multiplies: a pass over the same elements."""
        return self._replace(
            loop=apart.loop,
            weight=None,
            input_gradient=apart.gradient,
            target_gradient=None,
            weight_gradient=None,
            apart=(),
        )

    @property
    def without_gradients(self) -> Task:
        """The same, but that it yields the losses of its elements alone."""
        return self._replace(
            reduction="none", input_gradient=None, target_gradient=None, weight_gradient=None, apart=()
        )

    def inputs(self, elements: Callable[[np.ndarray, tuple[int, ...]], Any]) -> Inputs:
        """What a pass reads, as a device sees the elements of an array, or of a number that stands for a shape."""
        arrays = (self.input, self.target, self.weight, self.factor, self.cotangent)
        return Inputs(*[elements(_ONE if array is None else array, self.input.shape) for array in arrays])


class Pass(NamedTuple):
    """One reading of all elements: which gradients it writes, and where losses go unless they are summed."""

    task: Task
    scalars: Scalars
    rows: np.ndarray | None
    gradients: bool
    whole: bool  # whether the sum is that of pairs

    @property
    def buffers(self) -> list[np.ndarray | None]:
        """Of input's gradient, target's, weight's, and of the losses; None where nothing is written."""
        task = self.task
        if not self.gradients:
            return [None, None, None, self.rows]
        return [task.input_gradient, task.target_gradient, task.weight_gradient, self.rows]

    @property
    def wanted(self) -> Wanted:
        """What is written."""
        written = [buffer is not None for buffer in self.buffers]
        return Wanted(*written, total=self.rows is None, whole_total=self.rows is None and self.whole)


@jit.scalar
def _never(*_):
    return False, False, False


def _filler(loop: Loop, everything: bool) -> Any:
    """What fills a block's rows: values and input's derivatives alone, or the values' low parts and target's as well.

    What is left out is not in the machine code. The close elements are computed again, those of a block at once.
    """
    loss, is_close, watched = loop.loss, loop.is_close or _never, loop.is_close is not None

    @functools.partial(jit.helper, name=f"{loop.name}_{'all' if everything else 'input'}")
    def fill(rows, close, parameters, exponent):
        some, coarse, fine, left, largest = 0, 0, 0, 0, 0
        magics = short_magics(exponent)
        for i in range(rows.values.size):
            x, t, factor = rows.x[i], rows.t[i], rows.factor[i]
            value, for_input, for_target = loss(x, t, factor, parameters)
            high, low = normalised(value)
            rows.values[i] = high
            bits = magnitude_bits(high)
            largest = bits if bits > largest else largest
            of_coarse, of_fine, rest = short_counts(high, magics)
            coarse += of_coarse
            fine += of_fine
            left |= magnitude_bits(rest)
            rows.for_input[i], rows.for_input_low[i] = for_input
            if everything:
                rows.values_low[i] = low
                rows.for_target[i], rows.for_target_low[i] = for_target
            if watched:
                which = is_close(x, t, factor, parameters, high, for_input[0], for_target[0])
                code = (1 if which[0] else 0) | (2 if which[1] else 0)
                if everything:
                    code |= 4 if which[2] else 0
                close[i] = code
                some |= code
        return Counted(coarse, fine, float64_from_bits(largest), (left | some) == 0), some != 0

    return fill


def _refiner(loop: Loop) -> Any:
    """What computes close elements again."""
    accurate = loop.accurate
    if accurate is None:
        return _leave

    @functools.partial(jit.helper, name=loop.name)
    def refine(rows, close, parameters):
        for i in range(rows.x.size):
            if close[i] == 0:
                continue
            value, for_input, for_target = accurate(rows.x[i], rows.t[i], rows.factor[i], parameters)
            # One by one: none may depend on whether another was wanted.
            if close[i] & 1 != 0:
                rows.values[i], rows.values_low[i] = value
            if close[i] & 2 != 0:
                rows.for_input[i], rows.for_input_low[i] = for_input
            if close[i] & 4 != 0:
                rows.for_target[i], rows.for_target_low[i] = for_target

    return refine


@jit.helper
def _leave(rows, close, parameters):
    pass


@jit.once
def compiled(loop: Loop) -> Any:
    """The loop on the CPU."""
    fill_input, fill_all, refine = _filler(loop, False), _filler(loop, True), _refiner(loop)

    @functools.partial(jit.helper, name=loop.name)
    def fill(rows, close, wanted, scalars, exponent):
        if wanted.target_gradient or wanted.whole_total or wanted.weight_gradient or scalars.weighted:
            counted, some = fill_all(rows, close, scalars.parameters, exponent)
        else:
            counted, some = fill_input(rows, close, scalars.parameters, exponent)
        if some:
            refine(rows, close, scalars.parameters)
        return counted

    def compute_elements(rows_in, rows_out, wanted, scalars, limbs, first, last):
        """Write what is wanted of elements first ... last and add to the limbs; the sum of what is not finite."""
        inputs, outputs = _named(rows_in, rows_out)
        special, exponent = 0.0, 0
        buffers, close = _new_rows(), np.empty(BLOCK, np.int64)
        inputs, outputs = uncounted(inputs), uncounted(outputs)
        _load_constants(inputs, first, _first(uncounted(buffers), min(BLOCK, last - first)))
        for start in range(first, last, BLOCK):
            rows = _first(uncounted(buffers), min(BLOCK, last - start))
            _load_all(inputs, start, rows)
            counted = fill(rows, close, wanted, scalars, exponent)
            weight, cotangent = rows.weight, rows.cotangent
            if wanted.input_gradient:
                high, low = rows.for_input, rows.for_input_low
                _save_gradient(high, low, weight, cotangent, scalars, outputs.input_gradient, start)
            if wanted.target_gradient:
                high, low = rows.for_target, rows.for_target_low
                _save_gradient(high, low, weight, cotangent, scalars, outputs.target_gradient, start)
            if wanted.weight_gradient:
                _save_weight_gradient(rows, scalars, outputs.weight_gradient, start)
            if scalars.weighted:
                _weigh(rows)
            if wanted.loss:
                save_pairs(rows.values, rows.values_low, outputs.loss, start)
            if wanted.whole_total:
                special += add_exactly(rows.values_low, limbs)
            if scalars.weighted and wanted.total:
                special += add_exactly(rows.values, limbs)
            elif wanted.total:
                of_block, exponent = _add_values(rows.values, counted, exponent, limbs)
                special += of_block
        return special

    return jit.kernel(compute_elements, loop.name)
