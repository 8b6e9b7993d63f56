"""Losses of preferences, of pairs of sequences and of single ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.gauntlet.elements import Elements
from tests.gauntlet.kernels import sigmoid, softplus

if TYPE_CHECKING:
    from tests.gauntlet.elements import Derivatives
    from tests.gauntlet.kernels import Answer

TAU = 0.05


class Given(NamedTuple):
    """What a kind is told, in the type that is computed in."""

    beta: Any
    smoothing: Any
    gamma: Any


def steep(x: np.ndarray) -> np.ndarray:
    """σ′(x)."""
    return sigmoid(x) * sigmoid(-x)


class PreferenceLoss(Elements):
    """Every kind, of two log-ratios."""

    names = "chosen_log_probs", "rejected_log_probs"

    def given(self, x: np.ndarray, parameters: dict[str, Any]) -> Given:
        """The numbers, with their defaults."""
        wanted = {"beta": 0.1, "label_smoothing": 0.0, "gamma": 0.0}
        return Given(*(x.dtype.type(parameters.get(name, default)) for name, default in wanted.items()))

    def ratios(self, x: np.ndarray, t: np.ndarray, inputs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """What is chosen and what is rejected, less their references."""
        names = ("ref_chosen_log_probs", "ref_rejected_log_probs")
        references = (inputs[name].astype(x.dtype) if name in inputs else x.dtype.type(0) for name in names)
        first, second = (value - reference for value, reference in zip((x, t), references, strict=True))
        return first, second

    def missing(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 − e^p and its logarithm."""
        missing = -np.expm1(p)
        return missing, np.where(p > -0.7, np.log(missing), np.log1p(-np.exp(p)))

    def smoothed(self, x: np.ndarray, given: Given) -> tuple[np.ndarray, np.ndarray]:
        """cDPO."""
        kept = 1 - given.smoothing
        # 0·inf where nothing is smoothed.
        other = given.smoothing * softplus(x) if given.smoothing else x.dtype.type(0)
        return kept * softplus(-x) + other, given.smoothing * sigmoid(x) - kept * sigmoid(-x)

    def robust(self, x: np.ndarray, given: Given) -> tuple[np.ndarray, np.ndarray]:
        """Without the bias of labels that are wrong."""
        kept, whole = 1 - given.smoothing, 1 - 2 * given.smoothing
        value, slope = kept * softplus(-x), -kept * sigmoid(-x) - given.smoothing * sigmoid(x)
        return (value - given.smoothing * softplus(x) if given.smoothing else value) / whole, slope / whole

    def hinge(self, x: np.ndarray, given: Given) -> tuple[np.ndarray, np.ndarray]:
        """Without a slope where it is 0."""
        return np.maximum(1 - x, 0), np.where(1 - x > 0, -1, 0).astype(x.dtype)

    def exo_pair(self, x: np.ndarray, given: Given) -> tuple[np.ndarray, np.ndarray]:
        """A divergence."""
        most, least = -softplus(-x) - np.log1p(-given.smoothing), -softplus(x) - np.log(given.smoothing)
        return sigmoid(x) * most + sigmoid(-x) * least, steep(x) * (most - least)

    def discopop(self, x: np.ndarray, given: Given) -> tuple[np.ndarray, np.ndarray]:
        """Without an overflow of e^−x."""
        y, missed = x / x.dtype.type(TAU), softplus(-x)
        grown = np.exp(-x - softplus(-y))
        turned = sigmoid(-y) * (grown - missed * sigmoid(y)) / x.dtype.type(TAU)
        return missed * sigmoid(-y) + grown, turned - sigmoid(-x) * sigmoid(-y) - grown

    def scaled(self, h: np.ndarray, given: Given) -> np.ndarray:
        """x."""
        return given.beta * h

    def of_difference(self, kind: str, h: np.ndarray, given: Given) -> Derivatives:
        """A kind that knows no more than the difference."""
        if kind == "ipo":
            beyond = h - 1 / (2 * given.beta)
            return beyond**2, 2 * beyond, -2 * beyond
        of = {"sigmoid": self.smoothed, "simpo": self.smoothed}.get(kind) or getattr(self, kind)
        value, slope = of(self.scaled(h, given) - given.gamma, given)
        return value, given.beta * slope, -given.beta * slope

    def of_both(self, kind: str, a: np.ndarray, b: np.ndarray, given: Given) -> Derivatives:
        """A kind that knows both."""
        beta = given.beta
        x, y = self.scaled(a, given), self.scaled(b, given)
        if kind == "nca_pair":
            value = softplus(-x) + softplus(x) / 2 + softplus(y) / 2
            return value, beta * (sigmoid(x) / 2 - sigmoid(-x)), beta * sigmoid(y) / 2
        if kind == "sppo_hard":
            above, below = a - 1 / (2 * beta), b + 1 / (2 * beta)
            return above**2 + below**2, 2 * above, 2 * below
        if kind == "apo_zero":
            return 1 - sigmoid(x) + sigmoid(y), -beta * steep(x), beta * steep(y)
        z = self.scaled(a - b, given)
        return sigmoid(x) + 1 - sigmoid(z), beta * (steep(x) - steep(z)), beta * steep(z)

    def orpo(self, w: np.ndarray, r: np.ndarray, given: Given) -> Derivatives:
        """The NLL of what is chosen, and log-odds."""
        (missing_w, log_w), (missing_r, log_r) = self.missing(w), self.missing(r)
        z = w - r - (log_w - log_r)
        pull = given.beta * sigmoid(-z)
        return -w + given.beta * softplus(-z), -1 - pull / missing_w, pull / missing_r

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """The loss of each pair."""
        kind, given = parameters.get("kind", "sigmoid"), self.given(x, parameters)
        a, b = self.ratios(x, t, inputs)
        if kind == "orpo":
            return self.orpo(a, b, given)
        if kind in ("nca_pair", "sppo_hard", "apo_zero", "apo_down"):
            return self.of_both(kind, a, b, given)
        return self.of_difference(kind, a - b, given)


class Kto(Elements):
    """Sequences each on its own."""

    names = "log_probs", "ref_log_probs"

    def center(self, kl: float) -> float:
        """What a log-ratio is compared with."""
        return max(kl, 0.0)

    def weights(self, x: np.ndarray, desirable: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
        """λ."""
        first, second = (parameters.get(f"{name}_weight", 1.0) for name in ("desirable", "undesirable"))
        return np.where(desirable, first, second).astype(x.dtype)

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """1 − σ on either side."""
        beta, desirable = x.dtype.type(parameters.get("beta", 0.1)), inputs["desirable"]
        sign = np.where(desirable, 1, -1).astype(x.dtype)
        y = sign * beta * (x - t - x.dtype.type(self.center(parameters["kl"])))
        weight = self.weights(x, desirable, parameters)
        slope = -sign * weight * beta * steep(y)
        return weight * (1 - sigmoid(y)), slope, -slope

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The reference has no gradient."""
        loss, grads = super().answer(inputs, parameters, cotangent)
        return loss, {"log_probs": grads["log_probs"]}
