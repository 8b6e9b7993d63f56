"""Losses of three arrays of corresponding elements, and of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.elements import Elements
from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.elements import Derivatives
    from tests.gauntlet.kernels import Answer

Slopes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # the loss of each element, and its derivatives


class Triples(Kernel):
    """A loss of each element, and their sum or mean."""

    names = "input", "target", "var"

    def element(self, *values: np.ndarray, parameters: dict[str, Any]) -> Slopes:
        """The loss of each element."""
        raise NotImplementedError

    def own_shape(self, inputs: dict[str, Any], name: str) -> tuple[int, ...]:
        """That of an input, the last of which may lack axes that the first one has."""
        shape: tuple[int, ...] = inputs[name].shape
        return shape + (1,) * (inputs[self.names[0]].ndim - len(shape)) if name == self.names[2] else shape

    def given(self, inputs: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An input, as the first one is; elements may share its numbers."""
        array = inputs[name].astype(self.widened(inputs[self.names[0]]).dtype)
        return np.broadcast_to(array.reshape(self.own_shape(inputs, name)), shape)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss and its gradients."""
        shape = np.broadcast_shapes(*(inputs[name].shape for name in self.names[:2]))
        values = [self.given(inputs, name, shape) for name in self.names]
        losses, *slopes = self.element(*values, parameters=parameters)
        reduction = parameters.get("reduction", "mean")
        divisor = losses.dtype.type(losses.size if reduction == "mean" else 1)
        loss = losses if reduction == "none" else np.asarray(self.sum(losses) / divisor)
        factor = self.upstream(cotangent, losses) / divisor
        grads = {
            name: self.gathered(factor * slope, self.own_shape(inputs, name)).reshape(inputs[name].shape)
            for name, slope in zip(self.names, slopes, strict=True)
        }
        return loss, {name: gradient.astype(inputs[name].dtype) for name, gradient in grads.items()}


class MarginRanking(Triples):
    """max(0, m − y·(x − z))."""

    names = "input1", "input2", "target"

    def counts(self, hinge: np.ndarray) -> np.ndarray:
        """Where there is a slope."""
        return np.asarray(hinge >= 0)

    def element(self, *values: np.ndarray, parameters: dict[str, Any]) -> Slopes:
        """The hinge, and its slopes on one side of it."""
        x, z, y = values
        hinge = x.dtype.type(parameters.get("margin", 0.0)) - y * (x - z)
        counts = self.counts(hinge)
        return np.maximum(hinge, 0), np.where(counts, -y, 0), np.where(counts, y, 0), np.where(counts, z - x, 0)


class GaussianNll(Triples):
    """(log v + d²/v)/2 with v = max(var, ε)."""

    def clamped(self, var: np.ndarray, eps: float) -> np.ndarray:
        """The variance that divides."""
        return np.maximum(var, var.dtype.type(eps))

    def of_distance(self, d: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The loss, and its derivatives in the distance and in the variance."""
        square = d * d / v
        return (np.log(v) + square) / 2, d / v, (1 - square) / (2 * v)

    def slope(self, slope: np.ndarray, var: np.ndarray, eps: float) -> np.ndarray:
        """That in the variance, whatever was clamped."""
        return slope

    def element(self, *values: np.ndarray, parameters: dict[str, Any]) -> Slopes:
        """The constant has no slope."""
        x, t, var = values
        eps = float(parameters.get("eps", 1e-6))
        losses, of_d, of_v = self.of_distance(x - t, self.clamped(var, eps))
        losses = losses + losses.dtype.type(0.5 * np.log(2 * np.pi)) if parameters.get("full") else losses
        return losses, of_d, -of_d, self.slope(of_v, var, eps)


class PoissonNll(Elements):
    """Counts, and the logarithms of their rates or the rates."""

    def some(self, t: np.ndarray) -> np.ndarray:
        """Where Stirling's term is added."""
        return np.asarray(t > 1)

    def stirling(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """t·log t − t + log(2πt)/2 and its derivative."""
        log_t = np.log(t)
        return t * log_t - t + (t.dtype.type(np.log(2 * np.pi)) + log_t) / 2, log_t + t.dtype.type(0.5) / t

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """One or the other."""
        if parameters.get("log_input", True):
            power = np.exp(x)
            losses, of_x, of_t = power - t * x, power - t, -x
        else:
            rate = x + x.dtype.type(parameters.get("eps", 1e-8))
            losses, of_x, of_t = x - t * np.log(rate), 1 - t / rate, -np.log(rate)
        if parameters.get("full"):
            (term, slope), some = self.stirling(t), self.some(t)
            # 0·log 0 of a term that is masked.
            left_out = np.where(t > 0, 0, t.dtype.type(np.nan))
            losses, of_t = losses + np.where(some, term, 0), of_t + np.where(some, slope, left_out)
        return losses, of_x, of_t
