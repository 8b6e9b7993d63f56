"""How far honest losses of tokens may be from the exact ones.

Notation as in softmax: u and v are unit roundoffs, s(n) what a sum of n terms costs (roundoff). With w_b what a token
of sequence b is weighed with in the one number, and ℓ, g a token's loss and slope, whose terms have magnitudes T and S,

    |δL| ≤ Σ w_b·(δℓ + (k·u + s(T) + s(B))·T),    |δ∂L/∂x| ≤ |c|·w_b·(δg + k·u·S)

Value loss. v − R is off by e = u·(|v| + |R|), v_c − R by e_c = 2¼·u·(|v| + |v₀| + c + |R|), half a square by
e·|v − R| + e²/2. The larger square may be either where both are nearer to each other than they are off by, beyond the
clip, and |v − v₀| may be on either side of c where it is as near to it: there a slope of v − R may be 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import Bound, whole
from refloss.error_model.vectors import sums_are_short
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult


class Tokens(NamedTuple):
    """Of each token [B, T]: magnitudes of the terms of its loss and of its slope, and what both are off by."""

    value: np.ndarray
    value_off: np.ndarray
    slope: np.ndarray
    slope_off: np.ndarray


def counts_of(case: Case) -> np.ndarray:
    """Which tokens of a case count."""
    first = next(iter(case.inputs.values()))
    return np.asarray(case.inputs.get("mask", np.ones(first.shape)), bool)


def weights_of(case: Case) -> np.ndarray:
    """What the losses of each sequence's tokens are multiplied by, [B, 1]."""
    counts, options = counts_of(case), case.parameters
    name, lengths = options.get("aggregation", "token-mean"), counts.sum(axis=1)
    rows = len(counts) if options.get("sequences", "all") == "all" else int((lengths > 0).sum())
    count = {"token-mean": lengths.sum(), "sum": 1, "none": 1}.get(name, rows)
    count = options.get("num_items") if options.get("num_items") is not None else count
    each = np.maximum(lengths, 1) if name == "seq-mean-token-mean" else np.ones(len(counts))
    return np.asarray(1.0 / (each * np.float64(count)))[:, None]


def aggregated(case: Case, unit: Roundoff, tokens: Tokens) -> dict[str, Bound]:
    """The bounds of a case from those of its tokens."""
    name, counts, weights = next(iter(case.inputs)), counts_of(case), weights_of(case)
    value, value_off, slope, slope_off = (np.where(counts, np.nan_to_num(part), 0.0) for part in tokens)
    cotangent = np.broadcast_to(np.abs(real(case.grad_output)), counts.shape)
    gradient = cotangent * weights * (slope_off + STEPS * unit.between * slope)
    relative = STEPS * unit.between + unit.sum(counts.shape[1]) + unit.sum(counts.shape[0])
    is_none = case.parameters.get("aggregation") == "none"
    loss = value_off if is_none else (weights * (value_off + relative * value)).sum()
    lost = unit.tiny * (1.0 + (0.0 if is_none else float((weights * counts).sum())))
    gone = np.where(counts, unit.tiny * (1.0 + cotangent * (1.0 + weights)), 0.0)
    return {
        "loss": whole(loss, lost=lost if np.isfinite(lost) else 0.0),
        f"grad.{name}": whole(gradient + np.nan_to_num(gone)),
        "intermediate.losses": whole(value_off, lost=unit.tiny),
    }


@np.errstate(all="ignore")
def value_loss(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Half the square of an error, or of a clipped one."""
    v, target = real(case.inputs["values"]), real(case.inputs["returns"])
    clip = case.parameters.get("clip")
    error = v - target
    off = np.where(sums_are_short(0.0, v, target, unit), 0.0, unit.between * (np.abs(v) + np.abs(target)))
    value, value_off = error**2 / 2, np.abs(error) * off + off**2 / 2
    doubtful = np.zeros(v.shape, bool)
    slope = np.abs(error)
    if clip is not None:
        old = real(case.inputs["old_values"])
        moved = v - old
        moved_off = unit.between * (np.abs(v) + np.abs(old) + clip)
        moved_off = np.where(sums_are_short(clip, v, old, unit), 0.0, moved_off)
        clipped = old + np.clip(moved, -clip, clip) - target
        held = 2.25 * unit.between * (np.abs(v) + np.abs(old) + clip + np.abs(target))
        held = np.where((moved_off == 0) & sums_are_short(clip, old, target, unit) & (off == 0), 0.0, held)
        other, other_off = clipped**2 / 2, np.abs(clipped) * held + held**2 / 2
        near = np.abs(value - other) <= value_off + other_off
        doubtful = near & (value_off + other_off > 0) & (np.abs(moved) > clip - moved_off)
        slope = np.where((value >= other) | doubtful, slope, 0.0)
        value, value_off = np.maximum(value, other), np.maximum(value_off, other_off)
    slope_off = np.where(slope > 0, off, 0.0) + np.where(doubtful, np.abs(error), 0.0)
    return aggregated(case, unit, Tokens(value, value_off, slope, slope_off))
