"""Elementwise losses: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.elementwise.loop import NO_PARAMETERS, Apart, Pass, Scalars, Task, compiled
from refloss.kernels.elementwise.shared import add_shared
from refloss.kernels.rows import elements_of
from refloss.numerics.exact import Exact, as_pair, exact, exact_sum, joined_sum, ratio
from refloss.numerics.shares import divided, divisor, mean_of_all
from refloss.numerics.sums import LIMBS, accumulated

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_ELEMENTS = 1 << 18
# Coefficients beyond these might overflow, or lose digits, before a derivative makes up for it. Within them, products
# with derivatives from 2^-300 to 2^400 are finite, and their low parts, down to 2^-106 of them, normal numbers.
_SMALLEST, _LARGEST = Fraction(1, 2**600), Fraction(2**600)
# A cotangent that changes nothing.
_ONE = np.ones(())
# Stands in for what is not written.
_NOWHERE = elements_of(np.empty(()))
Pair = tuple[float, float]


def elementwise_loss(task: Task, backend: str) -> np.float64 | np.ndarray:
    """Run a task: the reduced loss; gradients are written into the task's buffers."""
    run = _device(backend)
    normaliser = _normaliser(task)
    scalars = _scalars(task, normaliser)
    rows = np.empty(task.input.shape) if task.reduction == "none" else None
    # A weight's gradient is relative to the mean, where the mean depends on the weights: it needs a pass of its own.
    by_weights = task.weight is not None and task.reduction == "mean" and task.divisor is None
    twice = by_weights and task.weight_gradient is not None
    # The loss must not depend on whether that gradient is wanted.
    total = run(Pass(task, scalars, rows, gradients=not twice, whole=by_weights or task.loop.signed))
    loss = divided(total, normaliser) if rows is None else rows
    if twice:
        mean = as_pair(mean_of_all(total, normaliser))
        run(Pass(task, scalars._replace(mean=mean), None, gradients=True, whole=False))
    for apart in task.apart:
        _hand_to(apart, task, normaliser, run)
    return loss


def exact_total(task: Task, backend: str) -> Exact:
    """The sum of the elements' values before they are rounded to float64; nothing is written."""
    return _device(backend)(Pass(task, _scalars(task, Fraction(1)), None, gradients=False, whole=True))


def _hand_to(apart: Apart, task: Task, normaliser: Exact, run: Callable[[Pass], Exact]) -> None:
    """A gradient with a pass of its own: that of every element, or the sum of those that share a number."""
    later = task.of(apart)
    if apart.gradient.shape == task.input.shape:
        run(Pass(later, _scalars(later, normaliser), None, gradients=True, whole=False))
        return
    # What is summed are the derivatives' pairs: the high parts as values, the low ones as the second derivative.
    high, low = np.empty(task.input.shape), np.empty(task.input.shape)
    parts = later._replace(reduction="none", cotangent=_ONE, input_gradient=None, target_gradient=low)
    run(Pass(parts, _scalars(parts, Fraction(1)), high, gradients=True, whole=False))
    cotangent = task.cotangent
    number = apart.sign * (exact(cotangent.item()) if cotangent.ndim == 0 else Fraction(1))
    add_shared(high, low, cotangent if cotangent.ndim else _ONE, as_pair(ratio(number, normaliser)), apart.gradient)


def _scalars(task: Task, normaliser: Exact) -> Scalars:
    cotangent = None if task.weight is not None or task.cotangent.ndim else task.cotangent.item()
    inverse, exponent, coefficient = _quotients(normaliser, cotangent, task.loop.steepness)
    return Scalars(
        task.parameters or NO_PARAMETERS,
        task.loop.steepness,
        inverse,
        exponent,
        (0.0, 0.0),
        task.weight is not None,
        coefficient,
    )


@functools.lru_cache(maxsize=64)
def _quotients(normaliser: Exact, cotangent: float | None, steepness: float) -> tuple[Pair, int, Pair]:
    """1/normaliser over a power of two, the exponent of that, and all that derivatives are multiplied by, or 0."""
    inverse, exponent = _inverse(normaliser), 0
    if isinstance(inverse, Fraction) and not _SMALLEST < abs(inverse) < _LARGEST:
        exponent = round(math.log2(abs(inverse.numerator)) - math.log2(inverse.denominator))
        inverse /= Fraction(2) ** exponent
    coefficient = Fraction(0) if exponent else _coefficient(cotangent, inverse, steepness)
    return as_pair(inverse), exponent, as_pair(coefficient)


def _device(backend: str) -> Callable[[Pass], Exact]:
    """What runs a pass and yields the sum of the elements' values."""
    if runs_on_gpu(backend):
        from refloss.kernels.elementwise import gpu

        return gpu.run
    return _run


def _normaliser(task: Task) -> Exact:
    def own() -> Exact:
        if task.reduction != "mean":
            return Fraction(1)
        if task.divisor is not None:
            return exact(task.divisor)
        return Fraction(task.input.size) if task.weight is None else exact_sum(np.asarray(task.weight, np.float64))

    return divisor(own, is_mean=task.reduction == "mean")


def _inverse(normaliser: Exact) -> Exact:
    if normaliser == 0 or isinstance(normaliser, float):
        with np.errstate(divide="ignore"):
            return float(np.float64(1.0) / np.float64(float(normaliser)))
    return 1 / normaliser


def _coefficient(cotangent: float | None, inverse: Exact, steepness: float) -> Fraction:
    """Steepness times cotangent over normaliser, where that is one number of ordinary size; else 0."""
    if cotangent is None or isinstance(inverse, float) or not math.isfinite(cotangent):
        return Fraction(0)
    coefficient = Fraction(cotangent) * inverse * Fraction(steepness)
    return coefficient if _SMALLEST < abs(coefficient) < _LARGEST else Fraction(0)


def _run(this: Pass) -> Exact:
    task = this.task
    inputs = tuple(map(tuple, task.inputs(elements_of)))
    outputs = tuple([tuple(_NOWHERE if buffer is None else elements_of(buffer)) for buffer in this.buffers])
    loop, wanted = compiled(task.loop), this.wanted
    totals: list[int] = []
    special: list[float] = []

    def work(first: int, last: int, limbs: np.ndarray) -> None:
        limbs[:] = 0
        special.append(loop(inputs, outputs, wanted, this.scalars, limbs, first, last))
        totals.append(accumulated(limbs))

    parallel.run_blocks(work, task.input.size, BLOCK_ELEMENTS, lambda: np.empty(LIMBS, np.int64))
    return joined_sum(totals, special)
