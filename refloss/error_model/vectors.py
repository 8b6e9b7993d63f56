"""How far honest losses of rows of vectors may be from the exact ones.

Notation as in softmax: u and v are unit roundoffs, s(n) what a sum of n terms costs (roundoff), c the cotangent of a
row over its normaliser, N rows.

Margins of classes. z = m − x_k + x_j is off by e = 4·u·(|m| + |x_k| + |x_j|), unless all three are multiples of a
number so large that their sums are exact: then e = 0. A term max(0, z)^p is off by

    p = 1: e, where z > −e        p = 2: 2·z·e + e², where z > −e

and its slope by e′ = 1 where |z| ≤ e ≠ 0 for p = 1, and by 2·e where z > −e for p = 2. So with T the terms of a row and
S its slopes,

    |δℓ| ≤ w/C·(Σ e_T + (k·u + s(K·C))·Σ T),    |δg_j| ≤ |c|·w/C·(Σ_k e′ + (k·u + s(C))·Σ_k S)

and for a target the same with the sum over j.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import Bound, whole
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case

# Roundings of a sum of three numbers, with room for a second order.
_OF_THREE = 4


def reduced(
    case: Case, unit: Roundoff, values: np.ndarray, off: np.ndarray, slopes: dict[str, np.ndarray]
) -> dict[str, Bound]:
    """The bounds of a case from what its rows are made of.

    Args:
        case: the call.
        unit: of the type that is computed in.
        values: [N] the magnitudes of the terms of the losses.
        off: [N] what these are off by.
        slopes: by input what the slopes are off by, for a cotangent of 1, and of which some may be lost.
    """
    first = next(iter(case.inputs.values()))
    rows, reduction = off.size, case.parameters.get("reduction", "mean")
    divisor = max(rows, 1) if reduction == "mean" else 1
    cotangent = np.broadcast_to(np.abs(real(case.grad_output)).reshape(-1), rows)
    coefficient = (cotangent / divisor)[:, None]
    loss = off.reshape(first.shape[:-1])
    if reduction != "none":
        loss = np.asarray((off.sum() + (STEPS * unit.between + unit.sum(rows)) * values.sum()) / divisor)
    limits = {
        f"grad.{name}": whole(
            (coefficient * slope + unit.tiny * (1.0 + cotangent[:, None])).reshape(case.inputs[name].shape)
        )
        for name, slope in slopes.items()
    }
    losses = off.reshape(first.shape[:-1])
    return limits | {"loss": whole(loss, lost=unit.tiny), "intermediate.losses": whole(losses, lost=unit.tiny)}


class _Margins(NamedTuple):
    """Of one target of each row: terms and slopes of all classes, and what they are off by, [N, C]."""

    term: np.ndarray
    slope: np.ndarray
    off: np.ndarray
    slope_off: np.ndarray


def _is_short(margin: float, x: np.ndarray, other: np.ndarray, unit: Roundoff) -> np.ndarray:
    """Whether sums of the three are exact: all are multiples of a number beside which none is too large."""
    largest = abs(margin) + np.abs(x) + np.abs(other)
    with np.errstate(all="ignore"):
        grid = np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1.0))) + 1) * unit.between
        return np.asarray((margin % grid == 0) & (x % grid == 0) & (other % grid == 0))


def _margins(x: np.ndarray, own: np.ndarray, margin: float, p: int, unit: Roundoff) -> _Margins:
    z = (margin - own) + x
    off = _OF_THREE * unit.between * (abs(margin) + np.abs(own) + np.abs(x))
    off = np.where(_is_short(margin, own, x, unit) | ~np.isfinite(off), 0.0, off)
    above, near = np.where(z > 0, z, 0.0), z > -off
    if p == 1:
        return _Margins(above, (z > 0) * 1.0, np.where(near, off, 0.0), (np.abs(z) <= off) & (off > 0))
    return _Margins(above**2, 2 * above, np.where(near, 2 * above * off + off**2, 0.0), np.where(near, 2 * off, 0.0))


@np.errstate(all="ignore")
def class_margins(
    case: Case, targets: np.ndarray, weight: np.ndarray, unit: Roundoff, *, margin: float, p: int
) -> dict[str, Bound]:
    """Rows [N, C] with targets [N, K], of which a negative one ends a row's, and weights [N] of the rows."""
    first = real(case.inputs["input"])
    x = first.reshape(-1, first.shape[-1] if first.ndim else 1)
    rows, classes = np.arange(len(x)), x.shape[1]
    ended = np.cumsum(targets < 0, axis=1) > 0
    counts, named = ~ended, np.where(ended, 0, targets)
    is_target = np.zeros(x.shape, bool)
    for k in range(targets.shape[1]):
        is_target[rows[counts[:, k]], named[counts[:, k], k]] = True
    value, value_off = np.zeros(len(x)), np.zeros(len(x))
    slope, slope_off = np.zeros(x.shape), np.zeros(x.shape)
    relative = STEPS * unit.between + unit.sum(targets.shape[1] * classes)
    for k in np.flatnonzero(counts.any(axis=0)).tolist():
        own = named[:, k]
        asked = (counts[:, k, None] & ~is_target) * 1.0
        of = _Margins(*(np.where(asked > 0, part, 0.0) for part in _margins(x, x[rows, own][:, None], margin, p, unit)))
        value += of.term.sum(axis=1)
        value_off += of.off.sum(axis=1)
        slope += of.slope
        slope_off += of.slope_off
        np.add.at(slope, (rows, own), of.slope.sum(axis=1))
        np.add.at(slope_off, (rows, own), of.slope_off.sum(axis=1))
    share = np.abs(weight) / classes
    values = share * value
    of_slopes = share[:, None] * (slope_off + relative * slope)
    return reduced(case, unit, values, share * value_off + relative * values, {"input": of_slopes})
