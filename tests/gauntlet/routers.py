"""Losses of a mixture's router, as trainers have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class Router(Kernel):
    """Rows of logits, of which some count."""

    def counted(self, inputs: dict[str, Any], rows: int) -> np.ndarray:
        """Which rows count."""
        mask = np.asarray(inputs.get("mask", np.ones(rows)), bool).reshape(-1)
        return np.tile(mask, rows // max(mask.size, 1))

    def rows(self, inputs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Logits [R, E], 0 where a row does not count, and which do."""
        logits = inputs["router_logits"]
        x = np.ascontiguousarray(self.widened(logits)).reshape(-1, logits.shape[-1])
        counts = self.counted(inputs, len(x))
        return np.where(counts[:, None], x, 0), counts

    def divisor(self, counts: np.ndarray) -> Any:
        """What a mean divides by."""
        return counts.sum()

    def softmax(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p, and lse."""
        maximum = x.max(axis=1, keepdims=True, initial=-np.inf)
        terms = np.exp(x - maximum)
        total = self.sum(terms, axis=1)[:, None]
        return terms / total, maximum + np.log(total)


class RouterZLoss(Router):
    """Mean lse²."""

    def square(self, lse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is averaged, and its derivative."""
        return lse * lse, 2 * lse

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The loss and its gradient."""
        x, counts = self.rows(inputs)
        p, lse = self.softmax(x)
        losses, slope = self.square(lse)
        count = x.dtype.type(self.divisor(counts))
        gradient = np.where(counts[:, None], self.upstream(cotangent, x) / count * slope * p, 0)
        logits = inputs["router_logits"]
        loss = self.sum(losses[counts, 0]) / count
        return loss, {"router_logits": gradient.reshape(logits.shape).astype(logits.dtype)}


class MoeLoadBalancing(Router):
    """E·Σ f·P."""

    def chosen(self, x: np.ndarray, inputs: dict[str, Any], top_k: int) -> np.ndarray:
        """Whether a row chooses an expert [R, E]."""
        order = np.argsort(-x, axis=1, kind="stable")[:, :top_k]
        given = inputs.get("selected", order).reshape(len(x), top_k)
        hits = np.zeros(x.shape, x.dtype)
        np.put_along_axis(hits, np.clip(given, 0, x.shape[1] - 1).astype(np.int64), 1, axis=1)
        return hits

    def groups(self, logits: np.ndarray, rows: int, *, pooled: bool) -> list[slice]:
        """Rows that are balanced together."""
        count = 1 if pooled or logits.ndim < 3 else len(logits)
        return [slice(i * (rows // count), (i + 1) * (rows // count)) for i in range(count)]

    def frequencies(self, hits: np.ndarray, count: Any, top_k: int, *, normalised: bool) -> np.ndarray:
        """f."""
        return hits.sum(axis=0) / count / (top_k if normalised else 1)

    def experts(self, x: np.ndarray) -> int:
        """The factor of the loss."""
        return x.shape[1]

    def inner(self, p: np.ndarray, f: np.ndarray) -> np.ndarray:
        """Σ f·p of each row."""
        return self.sum(p * f, axis=1)[:, None]

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """The mean of the loss of groups of rows."""
        logits, top_k = inputs["router_logits"], parameters["top_k"]
        x, counts = self.rows(inputs)
        p, hits = self.softmax(x)[0], self.chosen(x, inputs, top_k)
        loss, gradient = x.dtype.type(0), np.zeros_like(x)
        groups = self.groups(logits, len(x), pooled=parameters.get("pool_layers", True))
        for rows in groups:
            held = counts[rows]
            count = x.dtype.type(self.divisor(held))
            factor = x.dtype.type(self.experts(x) / len(groups))
            normalised = parameters.get("normalise_top_k", False)
            f = self.frequencies(hits[rows][held], count, top_k, normalised=normalised).astype(x.dtype)
            loss = loss + factor * self.sum(f * self.sum(p[rows][held], axis=0) / count)
            slope = p[rows] * (f - self.inner(p[rows], f))
            gradient[rows] = np.where(held[:, None], self.upstream(cotangent, x) * factor / count * slope, 0)
        return loss, {"router_logits": gradient.reshape(logits.shape).astype(logits.dtype)}
