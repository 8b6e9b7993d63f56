"""Losses of a matrix of similarities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel, sigmoid, softplus

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class SigmoidContrastive(Kernel):
    """Every pair is a binary classification."""

    def signs(self, x: np.ndarray) -> np.ndarray:
        """1 on the diagonal, −1 elsewhere."""
        return 2 * np.eye(len(x), dtype=x.dtype) - 1

    def likelihood(self, z: np.ndarray) -> np.ndarray:
        """−log σ(z)."""
        return softplus(-z)

    def divisor(self, x: np.ndarray) -> int:
        """What a mean divides by."""
        return len(x)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss and its gradient."""
        x, reduction = self.widened(inputs["logits"]), parameters.get("reduction", "mean")
        y, divisor = self.signs(x), x.dtype.type(self.divisor(x) if reduction == "mean" else 1)
        losses = self.likelihood(y * x)
        upstream = self.upstream(cotangent, x) / divisor
        upstream = upstream[:, None] if upstream.ndim else upstream
        loss = self.sum(losses, axis=1) if reduction == "none" else self.sum(losses) / divisor
        return loss, {"logits": (upstream * -y * sigmoid(-y * x)).astype(inputs["logits"].dtype)}


class InfoNce(Kernel):
    """Every row and every column is to find its own pair."""

    def targets(self, shape: tuple[int, ...], smoothing: Any) -> np.ndarray:
        """The mass of every class, row by row."""
        rows, columns = shape
        spread = np.full(shape, smoothing / columns)
        return np.asarray(spread + (1 - smoothing) * np.eye(rows, columns, dtype=spread.dtype))

    def maximum(self, x: np.ndarray) -> np.ndarray:
        """What exponentials are relative to."""
        return np.asarray(x.max(axis=1, keepdims=True, initial=-np.inf))

    def log_softmax(self, x: np.ndarray) -> np.ndarray:
        """Relative to the largest."""
        distance = x - self.maximum(x)
        return distance - np.log(self.sum(np.exp(distance), axis=1))[:, None]

    def half(self, x: np.ndarray, upstream: np.ndarray, smoothing: Any) -> tuple[np.ndarray, np.ndarray]:
        """The cross-entropies of rows, and their gradient."""
        log_p = self.log_softmax(x)
        q = self.targets(x.shape, x.dtype.type(smoothing)).astype(x.dtype)
        losses = self.sum(np.where(q == 0, 0, -q * log_p), axis=1)
        return losses, upstream * (np.exp(log_p) - q)

    def directions(self, *, symmetric: bool) -> tuple[bool, ...]:
        """Whether a half is that of columns."""
        return (False, True) if symmetric else (False,)

    def divisor(self, x: np.ndarray) -> int:
        """What a mean divides by."""
        return len(x)

    def share(self, halves: int) -> int:
        """What halves are divided by."""
        return halves

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss and its gradient."""
        x, reduction = self.widened(inputs["similarity"]), parameters.get("reduction", "mean")
        divisor = x.dtype.type(self.divisor(x) if reduction == "mean" else 1)
        upstream = self.upstream(cotangent, x) / divisor
        upstream = upstream[:, None] if upstream.ndim else upstream
        directions = self.directions(symmetric=parameters.get("symmetric", True))
        share = x.dtype.type(self.share(len(directions)))
        losses, gradient = np.zeros(len(x), x.dtype), np.zeros_like(x)
        for of_columns in directions:
            half = self.half(x.T if of_columns else x, upstream, parameters.get("label_smoothing", 0.0))
            losses += half[0] / share
            gradient += (half[1].T if of_columns else half[1]) / share
        loss = losses if reduction == "none" else self.sum(losses) / divisor
        return loss, {"similarity": gradient.astype(inputs["similarity"].dtype)}
