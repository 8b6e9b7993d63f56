"""Losses of three arrays of corresponding elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer

Slopes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # the loss of each element, and its derivatives


class Triples(Kernel):
    """A loss of each element, and their sum or mean."""

    names = "input", "target", "var"

    def element(self, *values: np.ndarray, parameters: dict[str, Any]) -> Slopes:
        """The loss of each element."""
        raise NotImplementedError

    def given(self, inputs: dict[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An input, as the first one is."""
        return np.asarray(inputs[name].astype(self.widened(inputs[self.names[0]]).dtype).reshape(shape))

    def gathered(self, gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The gradient of an input that has been broadcast."""
        return gradient

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss and its gradients."""
        shape = inputs[self.names[0]].shape
        values = [self.given(inputs, name, shape) for name in self.names]
        losses, *slopes = self.element(*values, parameters=parameters)
        reduction = parameters.get("reduction", "mean")
        divisor = losses.dtype.type(losses.size if reduction == "mean" else 1)
        loss = losses if reduction == "none" else np.asarray(self.sum(losses) / divisor)
        factor = self.upstream(cotangent, losses) / divisor
        grads = {
            name: self.gathered(factor * slope, inputs[name].shape).astype(inputs[name].dtype)
            for name, slope in zip(self.names, slopes, strict=True)
        }
        return loss, grads


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
