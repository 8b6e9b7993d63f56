"""Classification losses of rows with one class on the CPU: from arrays to loops and back."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from refloss import parallel
from refloss.kernels.launch_cross_entropy import divided
from refloss.kernels.one_class import Focus, Meant, OneClassLoop, compiled
from refloss.kernels.rows import elements_of
from refloss.numerics.sums import LIMBS, UNITS, accumulated, as_pair

BLOCK_ELEMENTS = 1 << 15
__all__ = ["Focus", "Meant", "meant", "one_class"]


def meant(labels: np.ndarray, quality: np.ndarray | None = None, quality_low: np.ndarray | None = None) -> Meant:
    """Rows' classes, and how good each row is, a pair; all alike unless it is given."""
    high, low = np.ones(1) if quality is None else quality, np.zeros(1) if quality_low is None else quality_low
    return Meant(labels.reshape(-1), high, low)


def coefficient_of(cotangent: float, divisor: float) -> tuple[float, float]:
    """cotangent / divisor, which every derivative is multiplied by, as a pair."""
    return as_pair(Fraction(cotangent) / Fraction(divisor)) if np.isfinite(cotangent) else (cotangent, 0.0)


def one_class(
    loop: OneClassLoop,
    logits: np.ndarray,
    gradient: np.ndarray | None,
    meant: Meant,
    focus: Focus,
    *,
    cotangent: float,
    divisor: float,
) -> np.float64:
    """Σ over all classes of logits [..., C] / divisor; its gradient times the cotangent is written."""
    classes = logits.shape[-1]
    source = elements_of(logits)
    destination = source if gradient is None else elements_of(gradient)
    evaluate, coefficient = compiled(loop), coefficient_of(cotangent, divisor)
    totals: list[int] = []
    special: list[float] = []

    def work(first: int, last: int, limbs: np.ndarray) -> None:
        limbs[:] = 0
        with_gradient = gradient is not None
        scalars = (meant, focus, coefficient, with_gradient)
        special.append(evaluate(source, destination, classes, *scalars, limbs, first, last))
        totals.append(accumulated(limbs))

    block = max(1, BLOCK_ELEMENTS // max(1, classes))
    parallel.run_blocks(work, meant.labels.size, block, lambda: np.empty(LIMBS, np.int64))
    return divided(sum(special) or Fraction(sum(totals), UNITS), Fraction(divisor))
