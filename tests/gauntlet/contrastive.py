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
