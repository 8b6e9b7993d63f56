"""Losses of corresponding elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel, sigmoid, softplus

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer

Derivatives = tuple[np.ndarray, np.ndarray, np.ndarray]  # the loss of each element, its derivatives for both arguments


class Elements(Kernel):
    """A loss of each element, weighed, and their sum or mean."""

    names = "input", "target"
    weight_differentiable = False
    mean_of_weights = False  # whether a mean divides by the weights' sum

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """The loss of each element."""
        raise NotImplementedError

    def weight(self, x: np.ndarray, inputs: dict[str, Any]) -> np.ndarray:
        """What each element weighs."""
        weight = inputs.get("weight")
        return np.ones_like(x) if weight is None else np.broadcast_to(weight.astype(x.dtype), x.shape)

    def divisor(self, x: np.ndarray, weight: np.ndarray, parameters: dict[str, Any]) -> Any:
        """What a mean divides by."""
        reduction = parameters.get("reduction", "mean")
        if reduction == "batchmean":
            return x.dtype.type(x.shape[0] if x.ndim else 1)
        if reduction != "mean":
            return x.dtype.type(1)
        return self.sum(weight) if self.mean_of_weights else x.dtype.type(x.size)

    def reduced(self, losses: np.ndarray, divisor: Any, parameters: dict[str, Any]) -> np.ndarray:
        """One number, or the losses."""
        return losses if parameters.get("reduction") == "none" else np.asarray(self.sum(losses) / divisor)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss and its gradients."""
        first, second = self.names
        x = self.widened(inputs[first])
        t = inputs[second].astype(x.dtype)
        weight = self.weight(x, inputs)
        losses, of_x, of_t = self.element(x, t, parameters, inputs)
        divisor = self.divisor(x, weight, parameters)
        loss = self.reduced(weight * losses, divisor, parameters)
        factor = self.upstream(cotangent, x) / divisor
        grads = {first: factor * weight * of_x, second: factor * weight * of_t}
        if self.weight_differentiable and "weight" in inputs:
            mean = loss if self.mean_of_weights and parameters.get("reduction", "mean") == "mean" else 0
            grads["weight"] = self.gathered(factor * (losses - mean), inputs["weight"].shape)
        return loss, {name: value.astype(inputs[name].dtype) for name, value in grads.items()}


class Mse(Elements):
    """(x − t)²."""

    weight_differentiable = mean_of_weights = True

    def slope(self, difference: np.ndarray) -> np.ndarray:
        """The derivative of a square."""
        return 2 * difference

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """Squares."""
        difference = x - t
        return difference * difference, self.slope(difference), -self.slope(difference)


class L1(Elements):
    """|x − t|."""

    weight_differentiable = mean_of_weights = True

    def slope(self, difference: np.ndarray) -> np.ndarray:
        """0 where there is no difference."""
        return np.sign(difference)

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """Distances."""
        difference = x - t
        return np.abs(difference), self.slope(difference), -self.slope(difference)


class Huber(Elements):
    """Quadratic up to δ, linear beyond."""

    weight_differentiable = True

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """Both pieces have the slope ±δ where they meet."""
        delta = x.dtype.type(parameters.get("delta", 1.0))
        difference = x - t
        distance = np.abs(difference)
        losses = np.where(distance <= delta, difference * difference / 2, delta * (distance - delta / 2))
        slope = np.clip(difference, -delta, delta)
        return losses, slope, -slope


class SmoothL1(Elements):
    """Quadratic below β, with the slope ±1 from there on."""

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """β = 0 has no quadratic piece."""
        beta = x.dtype.type(parameters.get("beta", 1.0))
        difference = x - t
        distance = np.abs(difference)
        inner = distance < beta
        losses = np.where(inner, difference * difference / (2 * beta), distance - beta / 2)
        slope = np.where(inner, difference / beta, np.sign(difference))
        return losses, slope, -slope


class Bce(Elements):
    """Binary cross-entropy of probabilities."""

    def logarithms(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log p and log(1 − p)."""
        return np.log(p), np.log1p(-p)

    def clamped(self, logarithm: np.ndarray) -> np.ndarray:
        """A hard miss costs 100."""
        return np.maximum(logarithm, -100)

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """The derivatives are not those of the clamped value."""
        yes, no = self.logarithms(x)
        losses = -(t * self.clamped(yes) + (1 - t) * self.clamped(no))
        return losses, (x - t) / np.maximum(x * (1 - x), x.dtype.type(1e-12)), no - yes


class BceWithLogits(Elements):
    """Binary cross-entropy of logits."""

    names = "logits", "target"

    def sides(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """−log σ(x) and −log(1 − σ(x))."""
        return softplus(-x), softplus(x)

    def missed(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 − σ(x) and σ(x), both with all digits."""
        return sigmoid(-x), sigmoid(x)

    def factors(self, x: np.ndarray, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """What the positive and the negative side are multiplied by."""
        given = inputs.get("pos_weight")
        return (1, 1) if given is None else (np.broadcast_to(given.astype(x.dtype), x.shape), 1)

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """A positive and a negative side."""
        positive, negative = self.factors(x, inputs)
        (yes, no), (without, p) = self.sides(x), self.missed(x)
        losses = positive * t * yes + negative * (1 - t) * no
        return losses, negative * (1 - t) * p - positive * t * without, positive * yes - negative * no


class KlDiv(Elements):
    """The divergence of log-probabilities from a target."""

    def entropy(self, t: np.ndarray) -> np.ndarray:
        """t·log t, which is 0 where t is."""
        return np.where(t == 0, 0, t * np.log(t))

    def of_probabilities(self, x: np.ndarray, t: np.ndarray) -> Derivatives:
        """The derivative in a target of 0 is not a number."""
        return self.entropy(t) - t * x, -t, np.where(t == 0, np.nan, np.log(t) + 1 - x)

    def of_logarithms(self, x: np.ndarray, u: np.ndarray) -> Derivatives:
        """The target holds log-probabilities."""
        t = np.exp(u)
        return t * (u - x), -t, t * (u - x + 1)

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """One or the other."""
        return self.of_logarithms(x, t) if parameters.get("log_target") else self.of_probabilities(x, t)


class Focal(Elements):
    """Sigmoid focal loss: the cross-entropy b of a logit, times (1 − p_t)^γ.

    Everything is said of the side that a logit is on: u = e^−|x|, and how much of the target is on the other side.
    """

    names = "inputs", "targets"

    def divisor(self, x: np.ndarray, weight: np.ndarray, parameters: dict[str, Any]) -> Any:
        """A mean is one over axis 1, and the rest is divided by the number of boxes."""
        reduction = parameters.get("reduction", "mean")
        boxes = 1.0 if reduction == "none" else float(parameters.get("num_boxes", 1.0))
        return x.dtype.type(boxes * x.shape[1] if reduction == "mean" else boxes)

    def clamped(self, x: np.ndarray) -> np.ndarray:
        """Logits are taken as they are."""
        return x

    def balance(self, t: np.ndarray, alpha: float) -> tuple[Any, Any]:
        """α for positives and 1 − α for negatives, and the derivative of that in t."""
        if alpha < 0:
            return t.dtype.type(1), t.dtype.type(0)
        return t.dtype.type(alpha) * t + t.dtype.type(1 - alpha) * (1 - t), t.dtype.type(2 * alpha - 1)

    def cross_entropy(self, x: np.ndarray, opposite: np.ndarray) -> np.ndarray:
        """b = log(1 + u) + |x|·what is on the other side."""
        return np.asarray(np.log1p(np.exp(-np.abs(x))) + np.where(opposite == 0, 0, opposite * np.abs(x)))

    def missed(self, x: np.ndarray, opposite: np.ndarray) -> np.ndarray:
        """1 − p_t."""
        u = np.exp(-np.abs(x))
        return (u * (1 - opposite) + opposite) / (1 + u)

    def power(self, x: np.ndarray, missed: np.ndarray, gamma: float) -> np.ndarray:
        """(1 − p_t)^γ, by logarithms where 1 − p_t is too small for a normal number."""
        logarithm = -np.abs(x) - np.log1p(np.exp(-np.abs(x)))
        tiny = np.finfo(x.dtype).tiny
        direct = missed ** missed.dtype.type(gamma)
        return np.where(missed >= tiny, direct, np.exp(missed.dtype.type(gamma) * logarithm) if gamma else 1)

    def slope(self, missed: np.ndarray, gamma: float) -> np.ndarray:
        """γ, which multiplies what the focal factor's own derivative adds."""
        return missed.dtype.type(gamma)

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """Terms of the derivatives as in refloss.losses.sigmoid_focal."""
        x = self.clamped(x)
        gamma, side = float(parameters.get("gamma", 2.0)), np.where(x > 0, -1, 1).astype(x.dtype)
        a, change = self.balance(t, float(parameters.get("alpha", 0.25)))
        opposite = np.where(x > 0, 1 - t, t)
        u, b, missed = np.exp(-np.abs(x)), self.cross_entropy(x, opposite), self.missed(x, opposite)
        power, slope = self.power(x, missed, gamma), self.slope(missed, gamma)
        n = u * (1 - opposite) + opposite
        share, per_missed = np.where(opposite == 0, 1, u / n), np.where(n == 0, 1, b / n)
        inner = u * (1 - opposite) - opposite + slope * b * (1 - 2 * opposite) * share
        of_x = side * a * power / (1 + u) * inner
        of_t = power * (change * b + a * (-x + side * slope * per_missed * (1 - u)))
        return a * power * b, of_x, of_t


class Varifocal(Focal):
    """Cross-entropy with the quality of a box as its target; the weights are held constant."""

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Targets have no gradient."""
        loss, grads = super().answer(inputs, parameters, cotangent)
        return loss, {"inputs": grads["inputs"]}

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """Positives weigh their quality, negatives α·p^γ."""
        x = self.clamped(x)
        gamma, alpha = float(parameters.get("gamma", 2.0)), x.dtype.type(parameters.get("alpha", 0.75))
        p, opposite = sigmoid(x), np.where(x > 0, 1 - t, t)
        power = np.where(p >= np.finfo(x.dtype).tiny, p ** x.dtype.type(gamma), np.exp(x.dtype.type(gamma) * x))
        weight = np.where(t > 0, t, self.negative(alpha * power, t))
        return weight * self.cross_entropy(x, opposite), weight * (p - t), np.zeros_like(x)

    def negative(self, weight: np.ndarray, t: np.ndarray) -> np.ndarray:
        """What negatives weigh."""
        return weight
