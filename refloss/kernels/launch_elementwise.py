"""Elementwise losses on the CPU: from arrays to loops and back."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.kernels.elementwise import FINEST_MAGIC, Inputs, Loops, Outputs, Scalars, Wanted
from refloss.kernels.launch_cross_entropy import divided
from refloss.kernels.rows import elements_of
from refloss.numerics.sums import COARSE_MAGIC, FINE_MAGIC, as_pair, exact_sum

BLOCK_ELEMENTS = 1 << 18
_INFINITY_BITS = 0x7FF << 52


class Task(NamedTuple):
    """An elementwise loss as its file states it; arrays are of one shape, by broadcasting where need be."""

    loops: Loops
    parameter: float
    input: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    factor: np.ndarray | None
    reduction: str
    divisor: int | None  # of "mean", the sum of the weights if None
    cotangent: np.ndarray
    input_gradient: np.ndarray | None
    target_gradient: np.ndarray | None
    weight_gradient: np.ndarray | None


def elementwise(task: Task) -> np.float64 | np.ndarray:
    """Run a task: the reduced loss; gradients are written into the task's buffers."""
    inputs = _inputs(task)
    normaliser = _normaliser(task)
    rows = np.empty(task.input.shape) if task.reduction == "none" else None
    scalars = Scalars(task.parameter, as_pair(_inverse(normaliser)), 0.0, 0)
    exponent = None if task.reduction == "none" else _exponent(task, inputs)
    if rows is None and exponent is None:
        # Not finite: the float rules decide, and they want every value.
        rows = np.empty(task.input.shape)
    scalars = scalars._replace(exponent=exponent or 0)
    if task.weight_gradient is None or task.reduction != "mean":
        total = _evaluate(task, inputs, scalars, rows, gradients=True, loss=True)
        return rows if rows is not None and task.reduction == "none" else divided(total, normaliser)
    # A weight's gradient is relative to the mean, unless the mean does not depend on the weights.
    loss = divided(_evaluate(task, inputs, scalars, rows, gradients=False, loss=True), normaliser)
    mean = float(loss) if task.divisor is None else 0.0
    _evaluate(task, inputs, scalars._replace(mean=mean), None, gradients=True, loss=False)
    return loss


def _inputs(task: Task) -> Inputs:
    one = np.ones(())
    arrays = (task.input, task.target, task.weight, task.factor, task.cotangent)
    return Inputs(
        *(elements_of(np.broadcast_to(one if array is None else array, task.input.shape)) for array in arrays)
    )


def _normaliser(task: Task) -> Fraction | float:
    if task.reduction != "mean":
        return Fraction(1)
    if task.divisor is not None:
        return Fraction(task.divisor)
    return Fraction(task.input.size) if task.weight is None else exact_sum(np.asarray(task.weight, np.float64))


def _inverse(normaliser: Fraction | float) -> Fraction | float:
    if normaliser == 0 or isinstance(normaliser, float):
        with np.errstate(divide="ignore"):
            return float(np.float64(1.0) / np.float64(float(normaliser)))
    return 1 / normaliser


def _exponent(task: Task, inputs: Inputs) -> int | None:
    """The power of two that no value reaches; None if some value is not finite."""
    found = [0]

    def work(first: int, last: int, _: None) -> None:
        found.append(task.loops.largest(inputs, task.parameter, first, last))

    parallel.run_blocks(work, task.input.size, BLOCK_ELEMENTS, lambda: None)
    bits = max(found)
    return None if bits >= _INFINITY_BITS else (bits >> 52) - 1021


def _evaluate(
    task: Task, inputs: Inputs, scalars: Scalars, rows: np.ndarray | None, *, gradients: bool, loss: bool
) -> Fraction | float:
    """One pass over the elements; the sum of their values if there is one to take."""
    buffers = [task.input_gradient, task.target_gradient, task.weight_gradient, rows]
    written = [buffer is not None and (gradients or buffer is rows) for buffer in buffers]
    stand_in = np.empty(task.input.shape[:0])
    outputs = Outputs(*(elements_of(stand_in if buffer is None else buffer) for buffer in buffers))
    total = loss and rows is None
    wanted = Wanted(*written, total)
    counts: list[int] = []

    def work(first: int, last: int, _: None) -> None:
        sums = task.loops.evaluate(inputs, outputs, wanted, scalars, first, last)
        counts.append(_units(sums, last - first))

    parallel.run_blocks(work, task.input.size, BLOCK_ELEMENTS, lambda: None)
    if total:
        return Fraction(sum(counts)) * Fraction(2) ** (scalars.exponent - 108)
    return exact_sum(rows) if loss and rows is not None and task.reduction != "none" else 0.0


def _units(sums: tuple[int, int, int], elements: int) -> int:
    """Three sums of bits as a count of the finest units; what the magics added is taken off modulo 2^64."""
    total = 0
    for bits, magic in zip(sums, (COARSE_MAGIC, FINE_MAGIC, FINEST_MAGIC), strict=True):
        count = (bits - elements * int(np.float64(magic).view(np.int64)) + 2**63) % 2**64 - 2**63
        total = (total << 36) + count
    return total
