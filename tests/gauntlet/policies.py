"""Losses of tokens as a trainer has them: policies and critics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import Kernel, sigmoid

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer

    Numbers = dict[str, np.ndarray]
    Terms = tuple[np.ndarray, np.ndarray, np.ndarray]


class Tokens(Kernel):
    """Losses of tokens [B, T], their slopes, and those in the logarithm of a ratio that tokens may share."""

    def counted(self, inputs: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
        """Which tokens count."""
        return np.asarray(inputs.get("mask", np.ones(shape)), bool)

    def of_tokens(self, x: Numbers, parameters: dict[str, Any], counts: np.ndarray) -> Terms:
        """Losses, slopes, and slopes in the logarithm of the ratio."""
        raise NotImplementedError

    def aggregation(self, parameters: dict[str, Any]) -> str:
        """How losses become one number."""
        return str(parameters.get("aggregation", "token-mean"))

    def denominator(self, counts: np.ndarray, parameters: dict[str, Any]) -> float:
        """What all losses are divided by."""
        items, name = parameters.get("num_items"), self.aggregation(parameters)
        if items is not None or name in ("sum", "none"):
            return 1.0 if items is None else float(items)
        if name == "token-mean":
            return float(counts.sum())
        rows = counts.any(axis=1).sum() if parameters.get("sequences") == "non-empty" else len(counts)
        return float(rows)

    def weights(self, counts: np.ndarray, parameters: dict[str, Any], like: np.ndarray) -> np.ndarray:
        """What the tokens of each sequence are weighed with, [B, 1]."""
        is_mean = self.aggregation(parameters) == "seq-mean-token-mean"
        lengths = np.maximum(counts.sum(axis=1), 1) if is_mean else np.ones(len(counts))
        each = like.dtype.type(1) / lengths.astype(like.dtype)
        return np.asarray(each / like.dtype.type(self.denominator(counts, parameters)))[:, None]

    def mean(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Of the tokens of each sequence that count, [B, 1]."""
        lengths = np.maximum(counts.sum(axis=1), 1).astype(values.dtype)
        return (self.sum(np.where(counts, values, 0), axis=1) / lengths)[:, None]

    def through_ratio(self, slopes: np.ndarray, parameters: dict[str, Any], counts: np.ndarray) -> np.ndarray:
        """Slopes in the logarithms of ratios as those of log-probabilities."""
        return self.mean(slopes, counts) if parameters.get("ratio") == "sequence" else slopes

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Tokens, aggregated."""
        name, first = next(iter(inputs.items()))
        counts = self.counted(inputs, first.shape)
        x = {}
        for key, values in inputs.items():
            wide = self.widened(values) if key != "mask" else counts
            x[key] = np.where(counts, wide[:, None] if wide.ndim == 1 else wide, 0)
        losses, direct, of_ratio = self.of_tokens(x, parameters, counts)
        weights, upstream = self.weights(counts, parameters, losses), self.upstream(cotangent, losses)
        slopes = upstream * direct + self.through_ratio(upstream * of_ratio, parameters, counts)
        grads = {name: np.where(counts, weights * slopes, 0).astype(first.dtype)}
        losses = np.where(counts, losses, 0)
        return (losses if self.aggregation(parameters) == "none" else self.sum(weights * losses)), grads


class ValueLoss(Tokens):
    """½·max((v − R)², (v_c − R)²)."""

    def of_tokens(self, x: Numbers, parameters: dict[str, Any], counts: np.ndarray) -> Terms:
        """Squares, and half of the slope where both are equal."""
        v, target = x["values"], x["returns"]
        error, nothing = v - target, np.zeros_like(v)
        half = v.dtype.type(0.5)
        if "clip" not in parameters:
            return half * error * error, error, nothing
        clip, old = v.dtype.type(parameters["clip"]), x["old_values"]
        moved = v - old
        clipped = (old + np.clip(moved, -clip, clip)) - target
        first, second = error * error, clipped * clipped
        share = np.where(first == second, half, (first > second).astype(v.dtype))
        inside = np.abs(moved) <= clip
        slope = share * error + np.where(inside, (1 - share) * clipped, 0)
        return half * np.maximum(first, second), slope, nothing


class PolicyLoss(Tokens):
    """An objective of ratios and advantages, and an estimate of KL."""

    def log_ratio(self, x: Numbers, parameters: dict[str, Any], counts: np.ndarray) -> np.ndarray:
        """Of each token, or the mean of its sequence."""
        d = x["log_probs"] - x["old_log_probs"]
        return np.broadcast_to(self.mean(d, counts), d.shape) if parameters.get("ratio") == "sequence" else d

    def bounds(self, parameters: dict[str, Any], like: np.ndarray) -> tuple[Any, Any]:
        """1 − clip_low and 1 + clip_high."""
        low, high = parameters.get("clip_low", 0.2), parameters.get("clip_high")
        least = like.dtype.type(-np.inf if low is None else 1 - low)
        return least, like.dtype.type(1 + (low if high is None else high))

    def clipped(self, r: np.ndarray, x: Numbers, parameters: dict[str, Any]) -> Terms:
        """−min(r·A, clip(r)·A), with a dual clip."""
        low, high = self.bounds(parameters, r)
        a = x["advantages"]
        first, second = r * a, np.clip(r, low, high) * a
        inside = (r >= low) & (r <= high)
        share = np.where(inside | (first < second), 1, np.where(first == second, 0.5, 0)).astype(r.dtype)
        objective = np.minimum(first, second)
        if "dual_clip" in parameters:
            third = r.dtype.type(parameters["dual_clip"]) * a
            share *= np.where((a < 0) & (objective <= third), np.where(objective < third, 0, 0.5), 1).astype(r.dtype)
            objective = np.where(a < 0, np.maximum(objective, third), objective)
        return -objective, np.zeros_like(r), np.where(share > 0, -share * first, 0)

    def cispo(self, r: np.ndarray, x: Numbers, parameters: dict[str, Any]) -> Terms:
        """−sg(clip(r))·A·log p."""
        slope = -np.clip(r, *self.bounds(parameters, r)) * x["advantages"]
        return slope * x["log_probs"], slope, np.zeros_like(r)

    def sapo(self, r: np.ndarray, x: Numbers, parameters: dict[str, Any]) -> Terms:
        """−(4/τ)·σ(τ·(r − 1))·A."""
        a = x["advantages"]
        names = ("sapo_temperature_pos", 1.0), ("sapo_temperature_neg", 1.05)
        t = np.where(a > 0, *(r.dtype.type(parameters.get(*name)) for name in names))
        own, other = sigmoid(t * (r - 1)), sigmoid(-t * (r - 1))
        return -4 / t * own * a, np.zeros_like(r), -4 * own * other * r * a

    def estimate(self, q: np.ndarray, kl: str) -> tuple[np.ndarray, np.ndarray]:
        """An estimate of KL, and its slope."""
        if kl == "k1":
            return -q, np.ones_like(q)
        return (q * q / 2, -q) if kl == "k2" else (np.exp(q) - q - 1, 1 - np.exp(q))

    def with_kl(self, terms: Terms, r: np.ndarray, x: Numbers, parameters: dict[str, Any]) -> Terms:
        """With the estimate added."""
        if not parameters.get("kl_coef"):
            return terms
        coefficient = r.dtype.type(parameters["kl_coef"])
        kl, slope = self.estimate(x["ref_log_probs"] - x["log_probs"], parameters["kl"])
        loss, direct, of_ratio = terms
        if not parameters.get("kl_ratio_weighted"):
            return loss + coefficient * kl, direct + coefficient * slope, of_ratio
        of_ratio = of_ratio + coefficient * kl * r
        return loss + coefficient * kl * r, direct + coefficient * slope * r, of_ratio

    def of_tokens(self, x: Numbers, parameters: dict[str, Any], counts: np.ndarray) -> Terms:
        """The objective, weighed, and KL, which is not."""
        r = np.exp(self.log_ratio(x, parameters, counts))
        objective = {"cispo": self.cispo, "sapo": self.sapo}.get(parameters.get("objective", "clip"), self.clipped)
        loss, direct, of_ratio = (x.get("weights", r.dtype.type(1)) * part for part in objective(r, x, parameters))
        return self.with_kl((loss, direct, of_ratio), r, x, parameters)
