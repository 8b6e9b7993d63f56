"""How far honest losses may be off whose rows are sums of elements' losses.

As in elementwise, with T_ij the magnitudes of the terms of an element's loss, G_ij those of a derivative, C elements in
a row, N rows, D what the sum is divided by and c the cotangent of a row over D:

    |δL|    ≤ (k·u + s(N·C))·Σ T_ij / D, or of a row (k·u + s(C))·Σ_j T_ij / D
    |δg_ij| ≤ k·u·|c_i|·G_ij, and of a number that n elements share Σ (k·u + s(n))·|c_i|·G_ij
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.error_model.bound import Aligned, Bound, blocks, summed, total, whole
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Terms(NamedTuple):
    """Of elements: magnitudes of the terms of a loss, and of its derivatives by the name of an input."""

    value: np.ndarray
    slopes: Mapping[str, np.ndarray]


def bounds(
    shape: tuple[int, ...],
    of_part: Callable[[int, int], Terms],
    inputs: Mapping[str, tuple[int, ...]],
    cotangent: Any,
    unit: Roundoff,
    *,
    width: float,
    reduction: str,
) -> dict[str, Bound]:
    """Those of a loss of rows [..., C] that are divided by a width; of_part has the terms of elements first to last.

    Inputs have shapes that broadcast to that of the elements.
    """
    rows, classes, size = shape[:-1], shape[-1], math.prod(shape)
    count = math.prod(rows)
    off, divisor = STEPS * unit.between, np.float64(width * (count if reduction == "mean" else 1))
    each = np.abs(real(cotangent))
    spread = Aligned(shape, {"grad_output": each[..., None] if each.ndim else each})

    def value(first: int, last: int) -> np.ndarray:
        return of_part(first, last).value

    def of_input(name: str, own: tuple[int, ...]) -> Bound:
        sharing = size // max(math.prod(own), 1)
        relative = off if sharing == 1 else off + unit.sum(sharing)

        def slope(first: int, last: int) -> np.ndarray:
            terms, upstream = of_part(first, last).slopes[name], spread.part(first, last)["grad_output"]
            lost = unit.tiny * (1.0 + upstream * (1.0 + 1.0 / divisor) + terms)
            return np.asarray(relative * upstream / divisor * terms + lost)

        return summed(Bound(shape, slope), (1,) * (len(shape) - len(own)) + own, own)

    if reduction == "none":
        sums = np.zeros(count)
        for first, last in blocks(size):
            sums += np.bincount(np.arange(first, last) // classes, value(first, last), minlength=count)
        loss = whole((off + unit.sum(classes)) * sums / divisor, rows, lost=2 * classes * unit.tiny)
    else:
        lost = unit.tiny * (1.0 + 2.0 * size / divisor)
        loss = whole((off + unit.sum(size)) * total(size, value) / divisor, lost=lost)
    of_inputs = {f"grad.{name}": of_input(name, own) for name, own in inputs.items()}
    losses = Bound(shape, lambda first, last: (off + unit.inside) * value(first, last) + 2 * unit.tiny)
    return {"loss": loss, **of_inputs, "intermediate.losses": losses}
