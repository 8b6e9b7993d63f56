"""Sigmoid losses of rows with one positive class: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.one_class.loop import Focus, OneClassLoop, Positives, compiled
from refloss.kernels.rows import elements_of
from refloss.numerics.exact import Exact, exact, joined_sum, quotient, quotient_pair
from refloss.numerics.sums import LIMBS, accumulated

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_ELEMENTS = 1 << 16
Pair = tuple[float, float]


def positives_of(
    labels: np.ndarray, quality: np.ndarray | None = None, quality_low: np.ndarray | None = None
) -> Positives:
    """Rows' classes, and how good each row is, a pair; all alike unless it is given."""
    high, low = np.ones(1) if quality is None else quality, np.zeros(1) if quality_low is None else quality_low
    return Positives(labels.reshape(-1), high, low)


def one_class_loss(
    loop: OneClassLoop,
    logits: np.ndarray,
    gradient: np.ndarray | None,
    positives: Positives,
    focus: Focus,
    *,
    cotangent: Exact,
    divisor: float,
    backend: str,
) -> np.float64:
    """Σ over all classes of logits [..., C] / divisor; its gradient times the cotangent is written."""
    whole = exact(divisor)
    coefficient = quotient_pair(cotangent, whole)
    return quotient(_device(backend)(loop, logits, gradient, positives, focus, coefficient), whole)


def _device(
    backend: str,
) -> Callable[[OneClassLoop, np.ndarray, np.ndarray | None, Positives, Focus, Pair], Exact]:
    """What sums over all classes, and writes the gradient times a coefficient."""
    if runs_on_gpu(backend):
        from refloss.kernels.one_class import gpu

        return gpu.run
    return _run


def _run(
    loop: OneClassLoop,
    logits: np.ndarray,
    gradient: np.ndarray | None,
    positives: Positives,
    focus: Focus,
    coefficient: Pair,
) -> Exact:
    classes = logits.shape[-1]
    source = elements_of(logits)
    destination = source if gradient is None else elements_of(gradient)
    kernel, scalars = compiled(loop), (positives, focus, coefficient, gradient is not None)
    sums: list[np.ndarray] = []
    special: list[float] = []

    def limbs() -> np.ndarray:
        """A thread's accumulator."""
        sums.append(np.zeros(LIMBS, np.int64))
        return sums[-1]

    def work(first: int, last: int, of_thread: np.ndarray) -> None:
        special.append(kernel(source, destination, classes, *scalars, of_thread, first, last))

    block = max(1, BLOCK_ELEMENTS // max(1, classes))
    parallel.run_blocks(work, positives.labels.size, block, limbs)
    return joined_sum([accumulated(of_thread) for of_thread in sums], special)
