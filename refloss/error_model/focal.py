"""How far honest focal losses, varifocal loss and dice loss of logits may be from the exact ones.

Notation: e = k·u, f the few roundings of one function's value (roundoff), p = σ(x), b the binary cross-entropy, m =
1 − p_t the missed probability, w = p·(1 − p), a the weight of an element. Logits that come from elsewhere are off by d.
m and p − t are differences, off by f of their terms, b by f·(1 + |x|); a power's error is taken between the ends,
Δ(m^γ) = (m + δm)^γ − max(m − δm, 0)^γ. The exact m, 1 − p and |p − t| are sums of products of p and of
e^−|x|/(1 + e^−|x|): nothing of them is lost where x is large. So in first order

    focal      |δℓ| ≤ a·(Δ(m^γ)·b + m^γ·(δb + e·b))
               |δ∂ℓ| ≤ a·(Δ(m^γ)·|p − t| + m^γ·f·(p + t) + γ·(Δ(m^(γ−1))·b·w + m^(γ−1)·(δb·w + b·f·p)))
                       + (e + d)·a·(m^γ·|p − t| + γ·m^(γ−1)·b·w) + d·a·m^γ·w
    varifocal  of a negative class, α·p^γ is off by (γ + 2)·e of itself, of a positive one by q·(δt·|x| + f·(1 + |x|))
    dice       1 − A/B, where A and B are off by e + s(n) of themselves, n elements each, and the difference by u;
               of its derivative's terms A/B² and 2t/B the first by twice as much, p·(1 − p) by f·p

The gradient of a focal loss's target is (2α − 1)·m^γ·b + a·m^γ·(γ·b·(1 − 2p)/m − x), with the same errors of its
factors.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import Aligned, Bound, blocks, total, whole
from refloss.roundoff import STEPS, Roundoff, real

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refloss.cases.source import Case
    from refloss.result import LossResult


class Elements(NamedTuple):
    """Of each element: errors of its loss and of its derivatives, and their magnitudes."""

    value: np.ndarray
    slope: np.ndarray
    size: np.ndarray
    target_slope: np.ndarray | None = None


class _Sigmoid(NamedTuple):
    """p = σ(x) and 1 − p, neither of which is a difference, and the logarithms of both, without their signs."""

    p: np.ndarray
    rest: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def sigmoid(x: np.ndarray) -> _Sigmoid:
    """Of logits."""
    small = np.exp(-np.abs(x))
    larger, smaller, log = 1 / (1 + small), small / (1 + small), np.log1p(small)
    return _Sigmoid(
        p=np.where(x >= 0, larger, smaller),
        rest=np.where(x >= 0, smaller, larger),
        positive=np.maximum(-x, 0.0) + log,
        negative=np.maximum(x, 0.0) + log,
    )


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
    p, rest, positive, negative = sigmoid(x)
    flat, missed = p * rest, p * (1 - t) + rest * t
    loss, distance = t * positive + (1 - t) * negative, np.abs(p * (1 - t) - rest * t)
    weight = np.ones(x.shape) if alpha < 0 else alpha * t + (1 - alpha) * (1 - t)
    few = unit.few
    missed_error, loss_error = few + flat * moved, few * (1 + np.abs(x)) + moved
    scale, of_scale = _power(missed, missed_error, gamma)
    value = weight * (of_scale * loss + scale * (loss_error + off * loss))
    slope = of_scale * distance + scale * (few * (p + t) + off * distance + moved * (distance + flat))
    target = of_scale * np.abs(x) + off * scale * np.abs(x)
    if gamma:
        lowered, of_lowered = _power(missed, missed_error, gamma - 1)
        slope += gamma * (of_lowered * loss * flat + lowered * (loss_error * flat + loss * few * p))
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
    off: np.ndarray | float,
) -> Elements:
    """Varifocal losses: of positive classes, against a quality that is off."""
    e, few = STEPS * unit.between, unit.few
    p, _, _, b = sigmoid(x)
    weight, of_loss = alpha * p**gamma, few * (1 + np.abs(x))
    loss = b - quality * x
    value = off * (loss + off * np.abs(x)) + quality * (off * np.abs(x) + of_loss)
    slope = off * (np.abs(p - quality) + off) + quality * (off + few * (p + quality) + e * np.abs(p - quality))
    return Elements(
        np.where(positive, value, weight * ((gamma + 2) * e * b + of_loss)),
        np.where(positive, slope, (gamma + 4) * e * weight * p),
        np.where(positive, quality * loss, weight * b),
    )


class Dice:
    """Masks [N, n] whose logits may be off, in parts.

    Of every mask A = 2·Σ p·t + 1 and B = Σ p + Σ t + 1, so that the loss is 1 − A/B.
    """

    def __init__(
        self, x: np.ndarray, t: np.ndarray, unit: Roundoff, moved: np.ndarray | float = 0.0, count: int | None = None
    ) -> None:
        self.count = (len(x) if x.ndim else 1) if count is None else count
        self.pixels = x.size // max(self.count, 1)
        self.unit, self.elements = unit, Aligned(x.shape, {"x": x, "t": t, "moved": moved})

    @functools.cached_property
    def totals(self) -> np.ndarray:
        """[3, N]: A, B and Σ p·(1 − p)·d, in one pass."""
        found = np.zeros((3, self.count))
        found[:2] = 1.0
        for first, last in blocks(self.elements.size):
            x, t, moved = self.elements.part(first, last).values()
            p, rest, _, _ = sigmoid(x)
            masks = np.arange(first, last) // self.pixels
            terms = (2 * p * t, p + t, p * rest * moved)
            found += [np.bincount(masks, each, self.count) for each in terms]
        return found

    def losses(self) -> np.ndarray:
        """Of every mask."""
        above, below, moved = self.totals
        e = STEPS * self.unit.between + self.unit.sum(self.pixels)
        return np.asarray(2 * e * above / below + self.unit.between + 4 * moved / below)

    def slopes(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Of elements in C order: the errors of the derivatives for logits and for targets."""
        x, t, moved = self.elements.part(first, last).values()
        p, rest, _, _ = sigmoid(x)
        above, below, of_sums = self.totals[:, np.arange(first, last) // self.pixels]
        e, few, share = STEPS * self.unit.between, self.unit.few, above / below
        relative = e + self.unit.sum(self.pixels) + of_sums / below
        of_first = relative * (2 * share + 2 * t) / below
        slope = p * rest * of_first + (share + 2 * t) / below * (few * p + p * rest * moved)
        return slope, (relative * (2 * share + 2 * p) + 2 * (few * p + p * rest * moved)) / below


def _of_elements(
    case: Case, unit: Roundoff, elements: Callable[[np.ndarray, np.ndarray], Elements], gradients: Mapping[str, str]
) -> dict[str, Bound]:
    """Of a loss of inputs and targets that has a value for each of them; gradients are fields of elements, by input."""
    shape = case.inputs["inputs"].shape
    given = Aligned(shape, case.inputs | {"grad_output": case.grad_output})
    divisor, reduced = np.abs(np.float64(_divisor(case, shape))), case.parameters.get("reduction", "mean") != "none"

    @functools.lru_cache(maxsize=1)
    def at(first: int, last: int) -> Elements:
        own = given.part(first, last)
        return elements(own["inputs"], own["targets"])

    def slope(first: int, last: int, of: str) -> np.ndarray:
        cotangent, error = np.abs(given.part(first, last)["grad_output"]), getattr(at(first, last), of)
        # An error has been made of its terms by at least a few roundings.
        lost = unit.tiny * (1.0 + cotangent * (1.0 + 1.0 / divisor) + 2.0 * error / unit.few)
        return np.asarray(cotangent / divisor * error + lost)

    losses = Bound(shape, lambda first, last: at(first, last).value + 2 * unit.tiny)
    loss = losses
    if reduced:
        relative = STEPS * unit.between + unit.sum(given.size)
        summed = total(given.size, lambda first, last: at(first, last).value + relative * at(first, last).size)
        loss = whole(summed / divisor, lost=unit.tiny * (1.0 + 2.0 * given.size / divisor))
    return {
        "loss": loss,
        **{f"grad.{name}": Bound(shape, functools.partial(slope, of=of)) for name, of in gradients.items()},
        "intermediate.losses": losses,
    }


def _divisor(case: Case, shape: tuple[int, ...]) -> float:
    reduction, boxes = case.parameters.get("reduction", "mean"), case.parameters.get("num_boxes", 1.0)
    if reduction == "none":
        return 1.0
    return float(boxes) * (shape[1] if reduction == "mean" else 1.0)


def sigmoid_focal(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """The loss of that name."""
    options = {"alpha": case.parameters.get("alpha", 0.25), "gamma": case.parameters.get("gamma", 2.0)}
    gradients = {"inputs": "slope", "targets": "target_slope"}
    return _of_elements(case, unit, lambda x, t: focal_elements(x, t, unit, **options), gradients)


def varifocal(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """The loss of that name."""
    options = {"alpha": case.parameters.get("alpha", 0.75), "gamma": case.parameters.get("gamma", 2.0)}
    return _of_elements(
        case, unit, lambda x, t: quality_elements(x, t > 0, t, unit, **options, off=0.0), {"inputs": "slope"}
    )


def dice(case: Case, _: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """The loss of that name."""
    masks = Dice(case.inputs["inputs"], case.inputs["targets"], unit)
    shape = masks.elements.shape
    reduced = case.parameters.get("reduction", "sum") != "none"
    divisor = np.abs(np.float64(case.parameters.get("num_boxes", 1.0) if reduced else 1.0))
    cotangents = np.broadcast_to(np.abs(real(case.grad_output)), masks.count)

    def slope(first: int, last: int, of: int) -> np.ndarray:
        own, error = cotangents[np.arange(first, last) // masks.pixels], masks.slopes(first, last)[of]
        lost = unit.tiny * (1.0 + own * (1.0 + 1.0 / divisor) + error / unit.few)
        return np.asarray(own / divisor * error + lost)

    losses = whole(masks.losses(), lost=unit.tiny)
    loss = losses
    if reduced:
        above, below, _ = masks.totals
        added = (STEPS * unit.between + unit.sum(masks.count)) * np.abs((below - above) / below).sum()
        loss = whole((masks.losses().sum() + added) / divisor, lost=unit.tiny)
    return {
        "loss": loss,
        "grad.inputs": Bound(shape, lambda first, last: slope(first, last, 0)),
        "grad.targets": Bound(shape, lambda first, last: slope(first, last, 1)),
        "intermediate.losses": losses,
    }
