"""How far honest losses of rows of vectors may be from the exact ones.

Notation as in softmax: u and v are unit roundoffs, s(n) what a sum of n terms costs (roundoff), c the cotangent of a
row over its normaliser, N rows.

Margins of classes. z = m − x_k + x_j is off by e = 2¼·u·(|m| + |x_k| + |x_j|), unless all three are multiples of a
number so large that their sums are exact: then e = 0. A term max(0, z)^p is off by

    p = 1: e, where z > −e        p = 2: 2·z·e + e², where z > −e

and its slope by e′ = 1 where |z| ≤ e ≠ 0 for p = 1, and by 2·e where z > −e for p = 2. So with T the terms of a row and
S its slopes,

    |δℓ| ≤ w/C·(Σ e_T + (k·u + s(K·C))·Σ T),    |δg_j| ≤ |c|·w/C·(Σ_k e′ + (k·u + s(C))·Σ_k S)

and for a target the same with the sum over j.

Distances. d = (x − y) + ε is off by e = 2¼·u·(|x − y| + |ε|), or by 0 as z is; ‖d‖_p by Σ |s|·e + (4·u + s(D)/p)·‖d‖,
a slope s by what d/‖d‖ and ‖d‖ are off by, times the derivative of a power, and by what that power's logarithm is off
by. Where two distances, or a distance and the margin, are nearer to each other than they are off by, either slope may
be the one; not where they are equal sums of numbers that are exact. The loss is off by what both distances are off by:
it cancels as they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import Bound, whole
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult

# Roundings of a sum of three numbers, with room for a second order.
_OF_THREE = 2.25


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


def sums_are_short(margin: float, x: np.ndarray, other: np.ndarray, unit: Roundoff) -> np.ndarray:
    """Whether sums of the three are exact: all are multiples of a number beside which none is too large."""
    largest = abs(margin) + np.abs(x) + np.abs(other)
    with np.errstate(all="ignore"):
        grid = np.exp2(np.ceil(np.log2(np.where(largest > 0, largest, 1.0))) + 1) * unit.between
        return np.asarray((margin % grid == 0) & (x % grid == 0) & (other % grid == 0))


def _margins(x: np.ndarray, own: np.ndarray, margin: float, p: int, unit: Roundoff) -> _Margins:
    z = (margin - own) + x
    off = _OF_THREE * unit.between * (abs(margin) + np.abs(own) + np.abs(x))
    off = np.where(sums_are_short(margin, own, x, unit) | ~np.isfinite(off), 0.0, off)
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


# Roundings of a distance, and of a slope: of a power, a root, a quotient.
_OF_DISTANCE = 4


class _Distance(NamedTuple):
    """Of rows [N, D]: norms [N, 1] and slopes, what these are off by, and whether differences are exact."""

    norm: np.ndarray
    norm_off: np.ndarray
    slope: np.ndarray
    slope_off: np.ndarray
    is_short: np.ndarray


def _largest(d: np.ndarray, off: np.ndarray) -> _Distance:
    """p = ∞: which elements are the largest is known up to what they are off by."""
    size, most = np.abs(d), off.max(axis=1, keepdims=True, initial=0.0)
    norm = size.max(axis=1, keepdims=True, initial=0.0)
    hit = size == norm
    slope = np.sign(d) * hit / np.maximum(hit.sum(axis=1, keepdims=True), 1)
    maybe = norm - size <= off + most
    doubtful = maybe & ((off > 0) | (most > 0)) & (maybe.sum(axis=1, keepdims=True) > 1)
    return _Distance(norm, most, slope, doubtful * 1.0, most == 0)


def _distance(x: np.ndarray, y: np.ndarray, eps: float, p: float, unit: Roundoff) -> _Distance:
    d = (x - y) + eps
    off = _OF_THREE * unit.between * (np.abs(x - y) + abs(eps))
    off = np.where(sums_are_short(eps, x, y, unit), 0.0, off)
    if p == np.inf:
        return _largest(d, off)
    size, is_short = np.abs(d), ~np.any(off > 0, axis=1, keepdims=True)
    largest = size.max(axis=1, keepdims=True, initial=0.0)
    largest = np.where(largest > 0, largest, 1.0)
    norm = largest * ((size / largest) ** p).sum(axis=1, keepdims=True) ** (1 / p)
    over = np.where(norm > 0, norm, 1.0)
    ratio, rounded = size / over, _OF_DISTANCE * unit.between
    slope = np.where(size > 0, np.sign(d) * ratio ** (p - 1), 0.0)
    norm_off = (np.abs(slope) * off).sum(axis=1, keepdims=True) + (rounded + unit.sum(d.shape[1]) / p) * norm
    if p == 1.0:
        exact = is_short & np.all(np.abs(d) == np.rint(np.abs(d)), axis=1, keepdims=True)
        return _Distance(norm, np.where(exact, 0.0, norm_off), slope, 2.0 * ((size <= off) & (off > 0)), is_short)
    # Powers are of logarithms, whose errors they multiply; where an element is lost, so is its slope.
    powers = rounded if p == 2.0 else rounded + unit.between * p * np.abs(np.log(np.where(size > 0, ratio, 1.0)))
    bent = abs(p - 1) * ((size + off * np.sign(p - 2)) / over) ** (p - 2) * off / over
    bent = np.where((size > 2 * off) | (p >= 2), bent, (off > 0) * 1.0)
    slope_off = np.nan_to_num(bent) + (powers + abs(p - 1) * norm_off / over) * np.abs(slope)
    return _Distance(norm, norm_off, slope, np.minimum(slope_off, 2.0 if p >= 1 else np.inf), is_short)


@np.errstate(all="ignore")
def triplet_margin(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Rows of three vectors."""
    options = case.parameters
    arrays = [real(case.inputs[name]) for name in ("anchor", "positive", "negative")]
    a, b, c = (array.reshape(-1, array.shape[-1] if array.ndim else 1) for array in arrays)
    margin, p, eps = options.get("margin", 1.0), options.get("p", 2.0), options.get("eps", 1e-6)
    near, far = _distance(a, b, eps, p, unit), _distance(a, c, eps, p, unit)
    across = _distance(b, c, eps, p, unit)
    swapped = options.get("swap", False)
    own, unsure = np.ones(near.norm.shape), np.zeros(near.norm.shape, bool)
    end, end_off = far.norm, far.norm_off
    if swapped:
        gap, doubt = far.norm - across.norm, far.norm_off + across.norm_off
        own = np.where(gap == 0, 0.5, gap < 0)
        # Of equal distances that are made of exact numbers, the roots are equal.
        unsure = (np.abs(gap) <= doubt) & (doubt > 0) & ~((gap == 0) & far.is_short & across.is_short)
        end = np.minimum(far.norm, across.norm)
        end_off = np.maximum(far.norm_off, across.norm_off)
    z, terms = margin + near.norm - end, margin + near.norm + end
    z_off = near.norm_off + end_off + _OF_THREE * unit.between * terms
    active, maybe = z >= 0, z >= -z_off
    flip = (np.abs(z) <= z_off) & (z != 0)

    def of(weight: np.ndarray, each: _Distance, doubtful: np.ndarray) -> np.ndarray:
        slope = np.abs(each.slope)
        return np.asarray(maybe * (weight * (each.slope_off + STEPS * unit.between * slope) + doubtful * slope))

    one, other = of(np.ones(own.shape), near, flip), of(np.where(unsure, 1.0, own), far, flip | unsure)
    third = of(np.where(unsure, 1.0, 1.0 - own), across, flip | unsure) if swapped else np.zeros(a.shape)
    off = np.where(maybe, z_off, 0.0)[:, 0]
    values = np.where(active, z, 0.0)[:, 0]
    slopes = {"anchor": one + other, "positive": one + third, "negative": other + third}
    return reduced(case, unit, values, off, slopes)


_EPSILON = 1e-12


@np.errstate(all="ignore")
def cosine_embedding(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Rows of two vectors."""
    arrays = [real(case.inputs[name]) for name in ("input1", "input2")]
    x, y = (array.reshape(-1, array.shape[-1]) for array in arrays)
    target, margin = real(case.inputs["target"]).reshape(-1, 1), case.parameters.get("margin", 0.0)
    squares = [(v * v).sum(axis=1, keepdims=True) + _EPSILON for v in (x, y)]
    length = np.sqrt(squares[0] * squares[1])
    cosine = (x * y).sum(axis=1, keepdims=True) / length
    magnitude = np.abs(x * y).sum(axis=1, keepdims=True) / length
    relative = STEPS * unit.between + unit.sum(x.shape[1])
    # ε is lost beside a squared length, or in it.
    lost = [np.where(square * unit.inside > _EPSILON / 4, _EPSILON, 0.0) / square for square in squares]
    cosine_off = relative * (magnitude + np.abs(cosine)) + np.abs(cosine) * (lost[0] + lost[1])
    rest = cosine - margin
    short = np.all((x == np.rint(x)) & (y == np.rint(y)), axis=1, keepdims=True) & (cosine == 0)
    doubtful = (np.abs(rest) <= cosine_off) & ~short & (target == -1)
    active = (target == 1) | ((target == -1) & ((rest >= 0) | doubtful))
    values = np.where(target == 1, 1 + magnitude, np.abs(margin) + magnitude) * active
    off = (cosine_off + unit.between * STEPS * (1.0 + abs(margin))) * active
    slopes = {}
    for name, own, other, square, gone in zip(("input1", "input2"), (x, y), (y, x), squares, lost, strict=True):
        second = np.abs(own) / square * magnitude
        terms = np.abs(other) / length + second
        slope = relative * terms * 2 + gone * second + terms * (lost[0] + lost[1])
        whole_slope = np.abs(other / length - own / square * cosine)
        slopes[name] = active * (slope + np.where(doubtful, whole_slope, 0.0))
    return reduced(case, unit, values[:, 0], off[:, 0], slopes)
