"""Losses of an input and a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.elements import BceWithLogits, Elements
from tests.gauntlet.kernels import sigmoid, softplus

if TYPE_CHECKING:
    from tests.gauntlet.elements import Derivatives
    from tests.gauntlet.kernels import Answer


class Margins(Elements):
    """A loss whose target has no derivative."""

    def sign(self, t: np.ndarray) -> np.ndarray:
        """Which of two classes an element is of."""
        return t

    def of_sign(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each element and its derivative."""
        raise NotImplementedError

    def element(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Derivatives:
        """The same."""
        return (*self.of_sign(x, self.sign(t), parameters), np.zeros_like(x))

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Targets have no gradient."""
        loss, grads = super().answer(inputs, parameters, cotangent)
        return loss, {"input": grads["input"]}


class SoftMargin(Margins):
    """log(1 + e^−yx)."""

    def of_sign(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Without overflow."""
        return softplus(-t * x), -t * sigmoid(-t * x)


class HingeEmbedding(Margins):
    """x, or what it lacks of a margin."""

    def cut(self, hinge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is lacking, and whether anything is; nothing, at the margin, has a slope."""
        return np.maximum(hinge, 0), hinge >= 0

    def of_sign(self, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Both terms of what is no sign."""
        lacks, slope = self.cut(x.dtype.type(parameters.get("margin", 1.0)) - x)
        plain, lacking = t != -1, t != 1
        return np.where(plain, x, 0) + np.where(lacking, lacks, 0), (plain * 1 - (lacking & slope) * 1).astype(x.dtype)


class MultilabelSoftMargin(BceWithLogits):
    """The mean over a row's classes of binary cross-entropies."""

    names = "input", "target"
    weight_differentiable = True

    def divisor(self, x: np.ndarray, weight: np.ndarray, parameters: dict[str, Any]) -> Any:
        """The classes of a row, and the rows of a mean."""
        rows = x[..., 0].size if parameters.get("reduction", "mean") == "mean" else 1
        return x.dtype.type(self.width(x) * rows)

    def width(self, x: np.ndarray) -> int:
        """What a row is divided by."""
        return x.shape[-1]

    def reduced(self, losses: np.ndarray, divisor: Any, parameters: dict[str, Any]) -> np.ndarray:
        """One number, or those of rows."""
        axis = -1 if parameters.get("reduction") == "none" else None
        return np.asarray(self.sum(losses, axis=axis) / divisor)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """A cotangent is one number, or one for each row."""
        given = np.asarray(cotangent)
        return super().answer(inputs, parameters, given[..., None] if given.ndim else cotangent)
