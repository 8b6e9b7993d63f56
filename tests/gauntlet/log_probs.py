"""Log-probabilities of indices and the entropy of rows, as a trainer has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class SelectedLogProbs(Kernel):
    """log p of K indices a row, and H."""

    def counted(self, inputs: dict[str, Any], rows: int) -> np.ndarray:
        """Which rows count."""
        return np.asarray(inputs.get("mask", np.ones(rows)), bool).reshape(-1)

    def chained(self, x: np.ndarray, parameters: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """z, and its derivative."""
        scale, temperature = (x.dtype.type(parameters.get(name, 1.0)) for name in ("logit_scale", "temperature"))
        z, slope = x * scale, np.full_like(x, scale)
        if "softcap" in parameters:
            cap = x.dtype.type(parameters["softcap"])
            tangent = np.tanh(z / cap)
            z, slope = cap * tangent, slope * (1 - tangent * tangent)
        return z / temperature, self.slope(slope, temperature)

    def slope(self, slope: np.ndarray, temperature: np.ndarray) -> np.ndarray:
        """The derivative of z, at a temperature."""
        return slope / temperature

    def surprise(self, p: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        """−log p where there is some probability."""
        return np.where(p > 0, -log_p, 0)

    def entropy_slope(self, p: np.ndarray, surprise: np.ndarray, entropy: np.ndarray) -> np.ndarray:
        """∂H/∂z."""
        return p * (surprise - entropy)

    def hits(self, index: np.ndarray, classes: int) -> np.ndarray:
        """Which classes the indices are, [N, K, V]."""
        return index[:, :, None] == np.arange(classes)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Rows that do not count are 0."""
        logits, index = inputs["logits"], inputs["index"]
        x = np.ascontiguousarray(self.widened(logits)).reshape(-1, logits.shape[-1])
        several = index.shape[-1] if index.ndim == logits.ndim else 1
        counts = self.counted(inputs, len(x))
        x = np.where(counts[:, None], x, 0)
        named = np.maximum(np.where(counts[:, None], index.reshape(len(x), several), 0), 0).astype(np.int64)
        z, slope = self.chained(x, parameters)
        below = z - z.max(axis=1, keepdims=True, initial=-np.inf)
        terms = np.exp(below)
        total = self.sum(terms, axis=1)[:, None]
        log_p, p = below - np.log(total), terms / total
        surprise = self.surprise(p, log_p)
        entropy = self.sum(p * surprise, axis=1)[:, None]
        given = cotangent if isinstance(cotangent, Mapping) else {"log_probs": cotangent}
        upstream, of_entropy = (
            np.broadcast_to(self.upstream(given.get(name, 0.0), x).reshape(-1, width), (len(x), width))
            if np.ndim(given.get(name, 0.0))
            else np.full((len(x), width), self.upstream(given.get(name, 0.0), x))
            for name, width in (("log_probs", several), ("entropy", 1))
        )
        pulled = (upstream[:, :, None] * self.hits(named, x.shape[1])).sum(axis=1)
        gradient = pulled - self.sum(upstream, axis=1)[:, None] * p
        gradient = slope * (gradient + of_entropy * self.entropy_slope(p, surprise, entropy))
        log_probs = np.where(counts[:, None], np.take_along_axis(log_p, named, axis=1), 0).reshape(index.shape)
        gradient = np.where(counts[:, None], gradient, 0).reshape(logits.shape).astype(logits.dtype)
        entropy = np.where(counts, entropy[:, 0], 0).reshape(logits.shape[:-1])
        return log_probs, {"logits": gradient}, {"log_probs": log_probs, "entropy": entropy}
