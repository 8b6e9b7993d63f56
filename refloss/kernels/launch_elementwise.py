"""Elementwise losses on the CPU: from arrays to loops and back."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import parallel
from refloss.kernels.elementwise import Inputs, Loop, Outputs, Scalars, Wanted, compiled
from refloss.kernels.launch_cross_entropy import divided
from refloss.kernels.rows import elements_of
from refloss.numerics.sums import LIMBS, UNITS, accumulated, as_pair, exact_sum

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_ELEMENTS = 1 << 18
# Coefficients beyond these might overflow, or lose digits, before a derivative makes up for it. Within them, products
# with derivatives from 2^-300 to 2^400 are finite, and their low parts, down to 2^-106 of them, normal numbers.
_SMALLEST, _LARGEST = Fraction(1, 2**600), Fraction(2**600)


class Task(NamedTuple):
    """An elementwise loss as its file states it; arrays are of one shape, by broadcasting where need be."""

    loop: Loop
    parameter: float
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


def elementwise(task: Task) -> np.float64 | np.ndarray:
    """Run a task: the reduced loss; gradients are written into the task's buffers."""
    return evaluate(task, _run)


def evaluate(task: Task, run: Callable[[Pass], Fraction | float]) -> np.float64 | np.ndarray:
    """A task's passes, each of which yields the sum of the elements' values, and what comes before and after them."""
    normaliser = _normaliser(task)
    inverse = _inverse(normaliser)
    scalars = Scalars(
        task.parameter, as_pair(inverse), 0.0, task.weight is not None, as_pair(_coefficient(task, inverse))
    )
    rows = np.empty(task.input.shape) if task.reduction == "none" else None
    # A weight's gradient is relative to the mean, where the mean depends on the weights: it needs a pass of its own.
    twice = task.weight_gradient is not None and task.reduction == "mean" and task.divisor is None
    total = run(Pass(task, scalars, rows, gradients=not twice))
    loss = divided(total, normaliser) if rows is None else rows
    if twice:
        run(Pass(task, scalars._replace(mean=float(loss)), None, gradients=True))
    return loss


def inputs_of(task: Task, elements: Callable[[np.ndarray], Any]) -> Inputs:
    """What a pass reads, as a device sees the elements of an array."""
    one = np.ones(())
    arrays = (task.input, task.target, task.weight, task.factor, task.cotangent)
    shape = task.input.shape
    return Inputs(*(elements(np.broadcast_to(one if array is None else array, shape, subok=True)) for array in arrays))


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


def _coefficient(task: Task, inverse: Fraction | float) -> Fraction:
    """Cotangent over normaliser, where that is one number of ordinary size; else 0."""
    if task.weight is not None or task.cotangent.ndim or isinstance(inverse, float):
        return Fraction(0)
    cotangent = float(task.cotangent)
    coefficient = Fraction(cotangent) * inverse if math.isfinite(cotangent) else Fraction(0)
    return coefficient if _SMALLEST < abs(coefficient) < _LARGEST else Fraction(0)


def _run(this: Pass) -> Fraction | float:
    task = this.task
    inputs = inputs_of(task, elements_of)
    stand_in = np.empty(task.input.shape[:0])
    outputs = Outputs(*(elements_of(stand_in if buffer is None else buffer) for buffer in this.buffers))
    loop, wanted = compiled(task.loop), this.wanted
    totals: list[int] = []
    special: list[float] = []

    def work(first: int, last: int, limbs: np.ndarray) -> None:
        limbs[:] = 0
        special.append(loop(inputs, outputs, wanted, this.scalars, limbs, first, last))
        totals.append(accumulated(limbs))

    parallel.run_blocks(work, task.input.size, BLOCK_ELEMENTS, lambda: np.empty(LIMBS, np.int64))
    return sum(special) or Fraction(sum(totals), UNITS)
