"""How far honest losses of tokens may be from the exact ones.

Notation as in softmax: u and v are unit roundoffs, s(n) what a sum of n terms costs (roundoff). With w_b what a token
of sequence b is weighed with in the one number, and ℓ, g a token's loss and slope, whose terms have magnitudes T and S,

    |δL| ≤ Σ w_b·(δℓ + (k·u + s(T) + s(B))·T),    |δ∂L/∂x| ≤ |c|·w_b·(δg + k·u·S)

Value loss. v − R is off by e = u·(|v| + |R|), v_c − R by e_c = 2¼·u·(|v| + |v₀| + c + |R|), half a square by
e·|v − R| + e²/2. The larger square may be either where both are nearer to each other than they are off by, beyond the
clip, and |v − v₀| may be on either side of c where it is as near to it: there a slope of v − R may be 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.error_model.bound import Bound, whole
from refloss.error_model.vectors import sums_are_short
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult


class Tokens(NamedTuple):
    """Of each token [B, T]: magnitudes of the terms of its loss and gradient, unweighted, and what both are off by."""

    value: np.ndarray
    value_off: np.ndarray
    slope: np.ndarray
    slope_off: np.ndarray


def counts_of(case: Case) -> np.ndarray:
    """Which tokens of a case count."""
    first = next(iter(case.inputs.values()))
    return np.asarray(case.inputs.get("mask", np.ones(first.shape)), bool)


def cotangents_of(case: Case) -> np.ndarray:
    """Magnitudes of the tokens' cotangents, [B, T]."""
    return np.broadcast_to(np.abs(real(case.grad_output)), counts_of(case).shape)


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
    cotangent = cotangents_of(case)
    gradient = weights * (slope_off + STEPS * unit.between * slope)
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
    cotangent = cotangents_of(case)
    return aggregated(case, unit, Tokens(value, value_off, cotangent * slope, cotangent * slope_off))


class _Ratio(NamedTuple):
    """Of each token: its ratio, what that is off by, and whether it may be on either side of a number."""

    value: np.ndarray
    off: np.ndarray

    def near(self, bound: float, unit: Roundoff) -> np.ndarray:
        """Where it may be either; not where it is the number and known."""
        apart = np.abs(self.value - bound) if np.isfinite(bound) else np.full(self.value.shape, np.inf)
        bound = bound if np.isfinite(bound) else 0.0
        return (apart <= self.off + unit.between * abs(bound)) & ((self.off > 0) | (apart > 0))


class _Policy(NamedTuple):
    """A term's magnitudes and what they are off by; slopes in a log-probability and in the logarithm of a ratio."""

    value: np.ndarray
    value_off: np.ndarray
    direct: np.ndarray
    direct_off: np.ndarray
    of_ratio: np.ndarray
    of_ratio_off: np.ndarray
    clipped: np.ndarray  # whether a token is, and whether it may be


def _difference(a: np.ndarray, b: np.ndarray, unit: Roundoff) -> tuple[np.ndarray, np.ndarray]:
    """a − b, and what it is off by."""
    apart = a - b
    return apart, np.where(apart == 0, 0.0, unit.between * (np.abs(a) + np.abs(b)))


def _ratio(case: Case, unit: Roundoff) -> _Ratio:
    d, off = _difference(real(case.inputs["log_probs"]), real(case.inputs["old_log_probs"]), unit)
    if case.parameters.get("ratio") == "sequence":
        counts = counts_of(case)
        lengths = np.maximum(counts.sum(axis=1, keepdims=True), 1)

        def mean(values: np.ndarray) -> np.ndarray:
            total = np.where(counts, values, 0.0).sum(axis=1, keepdims=True) / lengths
            return np.asarray(np.broadcast_to(total, counts.shape))

        off = mean(off) + (unit.sum(d.shape[1]) + 2 * unit.between) * mean(np.abs(d))
        d = mean(d)
    value = np.exp(d)
    return _Ratio(value, np.where((off == 0) & (d == 0), 0.0, value * (np.expm1(off) + unit.few)))


def _clip(case: Case, ratio: _Ratio, factor: np.ndarray, sign: np.ndarray, unit: Roundoff) -> _Policy:
    options, r = case.parameters, ratio.value
    low, high = _bounds(options)
    dual = options.get("dual_clip") or np.inf
    above, below = (r > high) & (sign > 0), (r < low) & (sign < 0)
    beyond = (r > dual) & (sign < 0)
    unsure = (sign > 0) & ratio.near(high, unit) | (sign < 0) & (ratio.near(low, unit) | ratio.near(dual, unit))
    held = np.where(above, high, np.where(below, low, r))
    held = np.where(sign < 0, np.minimum(held, dual), held)
    share = np.where(above | below | beyond, 0.0, np.where((r == dual) & (sign < 0), 0.5, 1.0))
    steps, slope = STEPS * unit.between, factor * r
    value_off = factor * (np.where((share > 0) | unsure, ratio.off, 0.0) + steps * held)
    slope_off = share * (factor * ratio.off + steps * slope) + np.where(unsure, slope + factor * ratio.off, 0.0)
    clipped = np.array([above | below, (sign > 0) & ratio.near(high, unit) | (sign < 0) & ratio.near(low, unit)])
    nothing = np.zeros(r.shape)
    return _Policy(factor * held, value_off, nothing, nothing, share * slope, slope_off, clipped)


def _bounds(options: dict[str, Any]) -> tuple[float, float]:
    low, high = options.get("clip_low", 0.2), options.get("clip_high")
    return -np.inf if low is None else 1.0 - low, 1.0 + (low if high is None else high)


def _cispo(case: Case, ratio: _Ratio, factor: np.ndarray, unit: Roundoff) -> _Policy:
    low, high = _bounds(case.parameters)
    x = np.abs(real(case.inputs["log_probs"]))
    unsure = ratio.near(low, unit) | ratio.near(high, unit)
    outside = (ratio.value > high) | (ratio.value < low)
    slope = factor * np.clip(ratio.value, low, high)
    off = np.where(outside & ~unsure, 0.0, factor * ratio.off) + STEPS * unit.between * slope
    nothing = np.zeros(x.shape)
    return _Policy(slope * x, off * x, slope, off, nothing, nothing, np.array([outside, unsure]))


def _sapo(case: Case, ratio: _Ratio, factor: np.ndarray, sign: np.ndarray, unit: Roundoff) -> _Policy:
    temperatures = case.parameters.get("sapo_temperature_pos", 1.0), case.parameters.get("sapo_temperature_neg", 1.05)
    temperature = np.where(sign > 0, *temperatures)
    z = temperature * (ratio.value - 1.0)
    off = temperature * (ratio.off + 3 * unit.between * (ratio.value + 1.0))
    u = np.exp(-np.abs(z))
    larger, smaller = 1.0 / (1.0 + u), u / (1.0 + u)
    own, other = np.where(z >= 0, larger, smaller), np.where(z >= 0, smaller, larger)
    # σ′ is at most e^−|z|. Of 1 − σ nothing is left where σ is rounded to 1.
    moved = np.minimum(off * np.exp(-np.maximum(np.abs(z) - off, 0.0)), 1.0)
    own_off, other_off = moved + unit.few * own, moved + np.where(other < unit.inside / 4, other, unit.few)
    value, steps = factor * 4.0 / temperature, STEPS * unit.between
    slope = 4.0 * own * other * factor * ratio.value
    slope_off = (
        4.0 * factor * ratio.value * (own_off * other + own * other_off) + 4.0 * own * other * factor * ratio.off
    )
    nothing = np.zeros(z.shape)
    return _Policy(
        value * own,
        value * (own_off + steps * own),
        nothing,
        nothing,
        slope,
        np.nan_to_num(slope_off) + steps * slope,
        np.zeros((2, *z.shape), bool),
    )


class _Estimate(NamedTuple):
    """An estimate of KL: its terms' magnitude and its own, its slope's, and what both are off by."""

    value: np.ndarray
    value_off: np.ndarray
    slope: np.ndarray
    slope_off: np.ndarray


def _estimate(case: Case, unit: Roundoff) -> _Estimate:
    q, off = _difference(real(case.inputs["ref_log_probs"]), real(case.inputs["log_probs"]), unit)
    kl, ones = case.parameters["kl"], np.ones(q.shape)
    if kl == "k1":
        return _Estimate(np.abs(q), off, ones, 0.0 * ones)
    if kl == "k2":
        square = q**2 / 2
        return _Estimate(square, np.abs(q) * off + off**2 / 2 + STEPS * unit.between * square, np.abs(q), off)
    exponential = np.exp(q)
    moved = exponential * np.expm1(off)
    value_off = np.abs(np.expm1(q)) * off + moved * off + unit.few * (exponential + np.abs(q) + 1.0)
    slope_off = moved + unit.few * (exponential + 1.0)
    return _Estimate(np.abs(np.expm1(q) - q), value_off, np.abs(np.expm1(q)), slope_off)


def _with_kl(case: Case, policy: _Policy, ratio: _Ratio, estimate: _Estimate, unit: Roundoff) -> _Policy:
    """With the estimate, or its product with the ratio, added."""
    coefficient, steps = abs(case.parameters.get("kl_coef", 0.0)), STEPS * unit.between
    if not case.parameters.get("kl_ratio_weighted"):
        return policy._replace(
            value=policy.value + coefficient * estimate.value,
            value_off=policy.value_off + coefficient * (estimate.value_off + steps * estimate.value),
            direct=policy.direct + coefficient * estimate.slope,
            direct_off=policy.direct_off + coefficient * (estimate.slope_off + steps * estimate.slope),
        )

    def times(part: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = coefficient * part * ratio.value
        return whole, coefficient * (off * (ratio.value + ratio.off) + part * ratio.off) + steps * whole

    value, value_off = times(estimate.value, estimate.value_off)
    direct, direct_off = times(estimate.slope, estimate.slope_off)
    return policy._replace(
        value=policy.value + value,
        value_off=policy.value_off + value_off,
        direct=policy.direct + direct,
        direct_off=policy.direct_off + direct_off,
        of_ratio=policy.of_ratio + value,
        of_ratio_off=policy.of_ratio_off + value_off,
    )


def _through_ratio(case: Case, part: np.ndarray, off: np.ndarray, unit: Roundoff) -> tuple[np.ndarray, np.ndarray]:
    """Slopes in the logarithms of ratios as those of log-probabilities: of a sequence's, their mean."""
    if case.parameters.get("ratio") != "sequence":
        return part, off
    counts = counts_of(case)
    lengths = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mean, mean_off = (np.where(counts, each, 0.0).sum(axis=1, keepdims=True) / lengths for each in (part, off))
    return mean, mean_off + (unit.sum(counts.shape[1]) + 2 * unit.between) * mean


@np.errstate(all="ignore")
def policy_loss(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """An objective, and an estimate of KL."""
    ratio, counts = _ratio(case, unit), counts_of(case)
    advantages = real(case.inputs["advantages"])
    weights = real(case.inputs.get("weights", np.ones(())))
    advantages, weights = (
        np.broadcast_to(each[:, None] if each.ndim == 1 else each, counts.shape) for each in (advantages, weights)
    )
    factor, objective = np.abs(advantages * weights), case.parameters.get("objective", "clip")
    sign = np.sign(advantages)
    if objective == "clip":
        policy = _clip(case, ratio, factor, sign, unit)
    else:
        policy = _cispo(case, ratio, factor, unit) if objective == "cispo" else _sapo(case, ratio, factor, sign, unit)
    others = {}
    if case.parameters.get("kl") is not None:
        estimate = _estimate(case, unit)
        policy = _with_kl(case, policy, ratio, estimate, unit)
        others["intermediate.kl"] = whole(np.where(counts, np.nan_to_num(estimate.value_off), 0.0), lost=unit.tiny)
    cotangent = cotangents_of(case)
    slope, off = _through_ratio(case, cotangent * policy.of_ratio, cotangent * policy.of_ratio_off, unit)
    direct, direct_off = cotangent * policy.direct, cotangent * policy.direct_off
    tokens = Tokens(policy.value, policy.value_off, direct + slope, direct_off + off)
    unsure = float(np.count_nonzero(policy.clipped[1] & counts)) / max(int(np.count_nonzero(counts)), 1)
    return (
        aggregated(case, unit, tokens)
        | others
        | {
            "intermediate.ratio": whole(np.where(counts, np.nan_to_num(ratio.off), 0.0), lost=unit.tiny),
            "intermediate.clip_fraction": whole(unsure + unit.few),
        }
    )
