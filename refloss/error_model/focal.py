"""How far honest focal losses, varifocal loss and dice loss of logits may be from the exact ones.

Notation: e = k·u, p = σ(x), b the binary cross-entropy, m = 1 − p_t the missed probability, w = p·(1 − p), a the
weight of an element. Logits that come from elsewhere are off by d. m and p − t are differences, off by e of their
terms, b by e·(1 + |x|); a power's error is taken between the ends, Δ(m^γ) = (m + δm)^γ − max(m − δm, 0)^γ. So in first
order

    focal      |δℓ| ≤ a·(Δ(m^γ)·b + m^γ·δb)
               |δ∂ℓ| ≤ a·(Δ(m^γ)·|p − t| + m^γ·e·(p + t) + γ·(Δ(m^(γ−1))·b·w + m^(γ−1)·(δb·w + b·e·p)))
                       + (e + d)·a·(m^γ·(|p − t| + w) + γ·m^(γ−1)·b·w)
    varifocal  of a negative class, α·p^γ is off by (γ + 2)·e of itself, of a positive one by q·(δt·|x| + e·(1 + |x|))
    dice       sums of n elements are off by (k·u + n·v) of themselves, above and below the line; p·(1 − p) by e·p

The gradient of a focal loss's target is (2α − 1)·m^γ·b + a·m^γ·(γ·b·(1 − 2p)/m − x), with the same errors of its
factors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult


class Elements(NamedTuple):
    """Of each element: errors of its loss and of its derivatives, and the loss's magnitude."""

    value: np.ndarray
    slope: np.ndarray
    size: np.ndarray
    target_slope: np.ndarray | None = None


def _power(base: np.ndarray, off: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """A power, and how far it is off."""
    power = base**exponent
    if exponent < 0.0:
        return power, power - (base + off) ** exponent
    return power, (base + off) ** exponent - np.maximum(base - off, 0.0) ** exponent


def focal_elements(
    x: np.ndarray, t: np.ndarray, unit: Roundoff, *, alpha: float, gamma: float = 2.0, moved: np.ndarray | float = 0.0
) -> Elements:
    """Sigmoid focal losses of logits that are off by moved."""
    off = STEPS * unit.between
    p = 1 / (1 + np.exp(-x))
    flat, missed = p * (1 - p), p * (1 - t) + (1 - p) * t
    loss = t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    weight = np.ones(x.shape) if alpha < 0 else alpha * t + (1 - alpha) * (1 - t)
    missed_error, loss_error = off + flat * moved, off * (1 + np.abs(x)) + moved
    scale, of_scale = _power(missed, missed_error, gamma)
    distance = np.abs(p - t)
    value = weight * (of_scale * loss + scale * (loss_error + off * loss))
    slope = of_scale * distance + scale * off * (p + t) + (off + moved) * scale * (distance + flat)
    target = of_scale * np.abs(x) + off * scale * np.abs(x)
    if gamma:
        lowered, of_lowered = _power(missed, missed_error, gamma - 1)
        slope += gamma * (of_lowered * loss * flat + lowered * (loss_error * flat + loss * off * p))
        slope += gamma * (off + moved) * lowered * loss * flat
        target += gamma * (of_lowered * loss + lowered * (loss_error + 3 * off * loss))
    leaning = 0.0 if alpha < 0 else abs(2 * alpha - 1)
    target = weight * target + leaning * (of_scale * loss + scale * (loss_error + off * loss))
    return Elements(value, weight * slope, weight * scale * loss, target)


def quality_elements(
    x: np.ndarray,
    positive: np.ndarray,
    quality: np.ndarray,
    unit: Roundoff,
    *,
    alpha: float,
    gamma: float,
    off: np.ndarray,
) -> Elements:
    """Varifocal losses: of positive classes, against a quality that is off."""
    e = STEPS * unit.between
    p, b = 1 / (1 + np.exp(-x)), np.logaddexp(0, x)
    weight, of_loss = alpha * p**gamma, e * (1 + np.abs(x))
    loss = b - quality * x
    value = off * (loss + off * np.abs(x)) + quality * (off * np.abs(x) + of_loss)
    slope = off * (np.abs(p - quality) + off) + quality * (off + e * (p + quality))
    return Elements(
        np.where(positive, value, weight * ((gamma + 2) * e * b + of_loss)),
        np.where(positive, slope, (gamma + 4) * e * weight * p),
        np.where(positive, quality * loss, weight * b),
    )


def dice_masks(
    x: np.ndarray, t: np.ndarray, unit: Roundoff, moved: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of masks [N, n]: errors of the losses [N], and of the derivatives with respect to logits and targets."""
    e, size = STEPS * unit.between, x.shape[1]
    p = 1 / (1 + np.exp(-x))
    flat = p * (1 - p)
    bottom = (p + t).sum(axis=1, keepdims=True) + 1
    off = e + size * unit.inside + (flat * moved).sum(axis=1, keepdims=True) / bottom
    slope = 4 * (off * flat + e * p + flat * moved) / bottom
    return 4 * off[:, 0], slope, 4 * (off + e * p + flat * moved) / bottom


def sums(
    elements: Elements, cotangent: Any, divisor: float, unit: Roundoff, *, reduced: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The loss's error, and the cotangent of an element."""
    terms = STEPS * unit.between + elements.size.size * unit.inside
    loss = elements.value
    if reduced:
        loss = np.asarray((loss.sum() + terms * elements.size.sum()) / abs(divisor))
    return loss, np.abs(real(cotangent)) / abs(divisor)


def _divisor(case: Case, x: np.ndarray) -> float:
    reduction, boxes = case.parameters.get("reduction", "mean"), case.parameters.get("num_boxes", 1.0)
    if reduction == "none":
        return 1.0
    return float(boxes) * (x.shape[1] if reduction == "mean" else 1.0)


def sigmoid_focal(case: Case, _: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """The loss of that name."""
    x, t = real(case.inputs["inputs"]), real(case.inputs["targets"])
    options = {"alpha": case.parameters.get("alpha", 0.25), "gamma": case.parameters.get("gamma", 2.0)}
    elements = focal_elements(x, t, unit, **options)
    reduced = case.parameters.get("reduction", "mean") != "none"
    loss, coefficient = sums(elements, case.grad_output, _divisor(case, x), unit, reduced=reduced)
    assert elements.target_slope is not None
    gradients = {"grad.inputs": coefficient * elements.slope, "grad.targets": coefficient * elements.target_slope}
    return {"loss": loss, **gradients, "intermediate.losses": elements.value}


def varifocal(case: Case, _: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """The loss of that name."""
    x, t = real(case.inputs["inputs"]), real(case.inputs["targets"])
    options = {"alpha": case.parameters.get("alpha", 0.75), "gamma": case.parameters.get("gamma", 2.0)}
    elements = quality_elements(x, t > 0, t, unit, **options, off=np.zeros(x.shape))
    reduced = case.parameters.get("reduction", "mean") != "none"
    loss, coefficient = sums(elements, case.grad_output, _divisor(case, x), unit, reduced=reduced)
    return {"loss": loss, "grad.inputs": coefficient * elements.slope, "intermediate.losses": elements.value}


def dice(case: Case, _: LossResult, unit: Roundoff) -> dict[str, np.ndarray]:
    """The loss of that name."""
    x, t = real(case.inputs["inputs"]), real(case.inputs["targets"])
    shape = (len(x), math.prod(x.shape[1:]))
    losses, slope, target_slope = dice_masks(x.reshape(shape), t.reshape(shape), unit)
    reduced = case.parameters.get("reduction", "sum") != "none"
    divisor = abs(case.parameters.get("num_boxes", 1.0)) if reduced else 1.0
    coefficient = np.broadcast_to(np.abs(real(case.grad_output)), len(x))[:, None] / divisor
    return {
        "loss": np.asarray(losses.sum() / divisor) if reduced else losses,
        "grad.inputs": (coefficient * slope).reshape(x.shape),
        "grad.targets": (coefficient * target_slope).reshape(x.shape),
        "intermediate.losses": losses,
    }
