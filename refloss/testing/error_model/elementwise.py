"""How far honest losses of corresponding elements, nll, focal losses and dice may be from the exact ones.

Notation as in cross_entropy: u and v are unit roundoffs. N elements have weights w_i; c is the cotangent over the
normaliser D. Every number on the way is a sum of terms with an error of k·u of their magnitudes, where k counts
roundings (STEPS) and, for a sum of n numbers, n·v more. So with T the sum of a value's magnitudes and G that of a
derivative's,

    |δL|    ≤ (k·u + n·v)·Σ w_i·T_i / D
    |δg_i|  ≤ k·u·|c|·w_i·G_i, and n·v more where D = Σ w_i
    |δℓ_i|  ≤ (k·u + v)·w_i·T_i, and |δσ_i| ≤ k·u·σ_i for what is not summed
    |δ∂w_i| ≤ (k·u + n·v)·|c|·(T_i + T̄), with T̄ the mean where D = Σ w_i depends on weights, else 0

What the terms are is the table MAGNITUDES. Where they are larger than the result, an honest implementation subtracts:
log1p(−p) from log p, t from p, (1 − t)·x from log σ(x); there digits may be lost. 1 − p is off by u, which is an
absolute error of its logarithm, hence the 1 among the terms. A step across a kink changes no value by more: the pieces
meet there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from refloss.result import LossResult


class Magnitudes(NamedTuple):
    """Sums of the magnitudes of terms, for every element."""

    value: np.ndarray  # T
    first: np.ndarray  # G of the loss's first argument
    target: np.ndarray  # G of its second


def _difference(x: np.ndarray, t: np.ndarray, _: Case, __: Roundoff) -> Magnitudes:
    d = np.abs(x - t)
    return Magnitudes(d, np.ones_like(d), np.ones_like(d))


def _mse(x: np.ndarray, t: np.ndarray, _: Case, __: Roundoff) -> Magnitudes:
    d = np.abs(x - t)
    return Magnitudes(d * d, 2 * d, 2 * d)


def _smooth_l1(x: np.ndarray, t: np.ndarray, case: Case, _: Roundoff) -> Magnitudes:
    d, beta = np.abs(x - t), case.parameters.get("beta", 1.0)
    slope = np.minimum(d / beta, 1.0) if beta else np.ones_like(d)
    return Magnitudes(np.where(d < beta, slope * d / 2, d + beta / 2), slope, slope)


def _huber(x: np.ndarray, t: np.ndarray, case: Case, _: Roundoff) -> Magnitudes:
    d, delta = np.abs(x - t), case.parameters.get("delta", 1.0)
    # The derivative of q²/2 + δ·(d − q) with q = min(d, δ): below δ it is (d − δ) + δ, of which the first is rounded.
    slope = np.where(d <= delta, d + (delta - d) / STEPS, delta)
    return Magnitudes(np.where(d <= delta, d * d / 2, delta * (d + delta / 2)), slope, slope)


def _bce(p: np.ndarray, t: np.ndarray, _: Case, __: Roundoff) -> Magnitudes:
    positive, negative = np.abs(np.log(p)), np.abs(np.log1p(-p))
    value = np.abs(t) * np.minimum(positive, 100.0) + np.abs(1 - t) * np.minimum(negative, 100.0)
    return Magnitudes(value, np.abs(p - t) / np.maximum(p * (1 - p), 1e-12), positive + negative + 1)


def _bce_with_logits(x: np.ndarray, t: np.ndarray, case: Case, unit: Roundoff) -> Magnitudes:
    given = case.inputs.get("pos_weight")
    factor = np.ones(()) if given is None else real(given)
    positive, negative = np.logaddexp(0.0, -x), np.logaddexp(0.0, x)
    value = np.abs((1 - t) * x) + (np.abs((factor - 1) * t) + 1) * positive
    pulled = np.abs(factor * t)
    slope = (pulled + 1 + np.abs(t)) * np.exp(-positive) + pulled
    # σ(x) may be e^(x − log(1 + e^x)), whose exponent is rounded twice, by at most the smaller of its terms.
    rounded = np.minimum(unit.between * np.abs(x), np.log1p(np.exp(-np.abs(x)))) / (STEPS * unit.between)
    slope += 2 * rounded * (pulled * np.exp(-negative) + np.abs(1 - t) * np.exp(-positive))
    return Magnitudes(value, slope, np.abs(factor) * positive + negative)


def _kl_div(x: np.ndarray, t: np.ndarray, case: Case, _: Roundoff) -> Magnitudes:
    if case.parameters.get("log_target", False):
        p = np.exp(t)
        return Magnitudes(p * np.abs(t - x), p, p * (np.abs(t - x) + 1))
    log_t = np.abs(np.log(t))
    return Magnitudes(np.where(t == 0, 0.0, t * log_t) + np.abs(t * x), t, log_t + 1 + np.abs(x))


MAGNITUDES: dict[str, Callable[[np.ndarray, np.ndarray, Case, Roundoff], Magnitudes]] = {
    "mse": _mse,
    "l1": _difference,
    "smooth_l1": _smooth_l1,
    "huber": _huber,
    "bce": _bce,
    "bce_with_logits": _bce_with_logits,
    "kl_div": _kl_div,
}


def elementwise(case: Case, _: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """The losses of the table."""
    names = list(case.inputs)[:2]
    x, t = (real(case.inputs[name]) for name in names)
    magnitudes = MAGNITUDES[case.function](x, t, case, unit)
    given = case.inputs.get("weight")
    weight = np.abs(np.ones(x.shape) if given is None else np.broadcast_to(real(given), x.shape))
    by_weight = given is not None and case.function in {"mse", "l1"}
    reduction = case.parameters.get("reduction", "mean")
    divisor = {
        "mean": np.asarray(weight.sum() if by_weight else x.size, dtype=float),
        "batchmean": np.asarray(x.shape[0] if x.ndim else 1, dtype=float),
    }.get(reduction, np.ones(()))
    coefficient = np.abs(real(case.grad_output)) / divisor
    value = weight * magnitudes.value / (1.0 if reduction == "none" else divisor)
    loss = value if reduction == "none" else value.sum()
    mean = loss if by_weight and reduction == "mean" else 0.0
    relative = STEPS * unit.between + x.size * unit.inside
    # A number of elements is exact, a sum of weights is not.
    of_gradient = STEPS * unit.between + (x.size * unit.inside if by_weight else 0.0)
    relative = STEPS * unit.between + unit.inside
    return {
        "loss": relative * loss,
        f"grad.{names[0]}": of_gradient * coefficient * weight * magnitudes.first,
        f"grad.{names[1]}": of_gradient * coefficient * weight * magnitudes.target,
        "grad.weight": relative * coefficient * (magnitudes.value + mean),
        "intermediate.losses": relative * weight * magnitudes.value,
        "intermediate.probabilities": relative / (1 + np.exp(-x)),
    }


def nll(case: Case, _: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """Minus the weighted log-probabilities of labels."""
    x, labels = real(case.inputs["input"]), case.inputs["target"]
    class_axis = min(1, x.ndim - 1)
    rows = np.moveaxis(x, class_axis, -1)
    given = case.inputs.get("weight")
    counted = np.where(labels == case.parameters.get("ignore_index", -100), -1, labels)
    weight = np.ones(rows.shape[-1]) if given is None else np.abs(real(given))
    mass = (counted[..., None] == np.arange(rows.shape[-1])) * weight
    reduction = case.parameters.get("reduction", "mean")
    divisor = mass.sum() if reduction == "mean" else np.ones(())
    value = np.where(mass == 0, 0.0, mass * np.abs(rows)).sum(axis=-1) / divisor
    coefficient = np.abs(real(case.grad_output)) / divisor
    relative = (STEPS + (1 if reduction == "none" else value.size)) * unit.between + x.size * unit.inside
    return {
        "loss": relative * (value if reduction == "none" else value.sum()),
        "grad.input": relative * np.moveaxis(coefficient[..., None] * mass, -1, class_axis),
    }
