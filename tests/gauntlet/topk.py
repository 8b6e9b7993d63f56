"""Distillation from a teacher's most probable classes, as a trainer has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class Rows(NamedTuple):
    """Of rows [R]: logits over a temperature [R, V], what a teacher says of places [R, K], and which name a class."""

    y: np.ndarray
    log_p: np.ndarray
    ids: np.ndarray
    named: np.ndarray
    is_named: np.ndarray  # [R, V]


class TopkDistillation(Kernel):
    """Σ p·(log p − log q) of K classes, and what becomes of the others."""

    def counted(self, inputs: dict[str, Any], rows: int) -> np.ndarray:
        """Which rows count."""
        return np.asarray(inputs.get("mask", np.ones(rows)), bool).reshape(-1)

    def divisor(self, counts: np.ndarray) -> int:
        """What a mean divides by."""
        return int(np.count_nonzero(counts))

    def teacher(self, log_p: np.ndarray) -> np.ndarray:
        """Its log-probabilities."""
        return log_p

    def tempered(self, x: np.ndarray, temperature: Any) -> np.ndarray:
        """y."""
        return np.asarray(x / temperature)

    def tail(self, parameters: dict[str, Any]) -> str:
        """What becomes of classes that are not named."""
        return str(parameters.get("tail", "drop"))

    def kept(self, losses: np.ndarray) -> np.ndarray:
        """Which losses have a gradient."""
        return np.ones_like(losses)

    def clamped(self, losses: np.ndarray) -> np.ndarray:
        """What losses of rows are taken for."""
        return losses

    def others(self, gradient: np.ndarray, is_named: np.ndarray) -> np.ndarray:
        """Gradients, those of other classes among them."""
        return gradient

    def largest(self, y: np.ndarray) -> np.ndarray:
        """What rows are moved by, [R, 1]."""
        return np.asarray(y.max(axis=1, keepdims=True, initial=-np.inf))

    def lse(self, values: np.ndarray) -> np.ndarray:
        """log Σ e^x of rows, [R, 1]."""
        maximum = values.max(axis=1, keepdims=True, initial=-np.inf)
        maximum = np.where(np.isneginf(maximum), 0, maximum)
        return np.asarray(maximum + np.log(self.sum(np.exp(values - maximum), axis=1)[:, None]))

    def bucket(self, rows: Rows, losses: np.ndarray, slopes: np.ndarray, log_q: np.ndarray) -> Any:
        """With the classes that are not named as one more."""
        others = np.where(rows.is_named, -np.inf, rows.y)
        log_outside = self.lse(others) - self.lse(rows.y)
        outside = 1 - self.sum(np.where(rows.named, np.exp(rows.log_p), 0), axis=1)[:, None]
        there = (outside > 0) & ~np.isneginf(log_outside)
        outside = np.where(there, outside, 0)
        shares = np.where(there & ~rows.is_named, np.exp(others - self.lse(others)), 0)
        beyond = np.where(there, outside * (np.log(np.where(there, outside, 1)) - log_outside), 0)[:, 0]
        return losses + beyond, slopes + outside * (np.exp(log_q) - shares)

    def forward(self, rows: Rows, tail: str) -> Any:
        """Losses of rows and their slopes in y."""
        y, log_p = rows.y, np.where(rows.named, rows.log_p, -np.inf)
        if tail == "renormalise":
            y = np.where(rows.is_named, y, -np.inf)
            log_p = log_p - self.lse(log_p)
        y = y - self.largest(y)
        log_q = y - self.lse(y)
        p = np.where(rows.named, np.exp(log_p), 0)
        chosen = np.take_along_axis(log_q, rows.ids, axis=1)
        losses = self.sum(np.where(rows.named & (p > 0), p * (log_p - chosen), 0), axis=1)
        masses = np.zeros_like(y)
        np.add.at(masses, (np.arange(len(y))[:, None], rows.ids), p)
        slopes = self.sum(p, axis=1)[:, None] * np.exp(log_q) - masses
        return self.bucket(rows._replace(y=y), losses, slopes, log_q) if tail == "bucket" else (losses, slopes)

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Rows that do not count, or that name nothing, are 0."""
        logits, log_p = inputs["student_logits"], inputs["teacher_log_probs"]
        x = np.ascontiguousarray(self.widened(logits)).reshape(-1, logits.shape[-1])
        log_p = self.teacher(self.widened(log_p).astype(x.dtype)).reshape(len(x), log_p.shape[-1])
        counts = self.counted(inputs, len(x))
        named = ~np.isneginf(log_p) & counts[:, None]
        ids = np.where(named, inputs["teacher_ids"].reshape(log_p.shape).astype(np.int64), 0)
        is_named = np.zeros(x.shape, np.int64)
        np.add.at(is_named, (np.arange(len(x))[:, None], ids), named)
        there = counts & named.any(axis=1)
        temperature = x.dtype.type(parameters.get("temperature", 1.0))
        y = self.tempered(np.where(there[:, None], x, 0), temperature)
        rows = Rows(y, np.where(named, log_p, 0), ids, named, is_named > 0)
        losses, slopes = self.forward(rows, self.tail(parameters))
        factor = temperature**2 if parameters.get("temperature_squared") else x.dtype.type(1)
        losses = np.where(there, losses * factor, 0)
        reduction = parameters.get("reduction", "mean")
        divisor = x.dtype.type(self.divisor(counts) if reduction == "mean" else 1)
        upstream = self.upstream(cotangent, x).reshape(-1, 1) * (self.kept(losses) * factor / divisor)[:, None]
        gradient = self.others(np.where(there[:, None], upstream * slopes / temperature, 0), rows.is_named)
        losses = self.clamped(losses)
        loss = losses.reshape(logits.shape[:-1]) if reduction == "none" else self.sum(losses) / divisor
        return loss, {"student_logits": gradient.reshape(logits.shape).astype(logits.dtype)}
