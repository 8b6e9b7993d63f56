"""Transducers: recursions of logarithms over a lattice, one node after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tests.gauntlet.kernels import Kernel

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class Arc(NamedTuple):
    """From every node: steps in frames and labels, which rows of which logits, and its logarithm [T, W]."""

    frames: int
    writes: int
    tokens: np.ndarray  # [W], classes
    duration: int
    value: np.ndarray


class Lattice(NamedTuple):
    """A sample: log-probabilities [T, W, V] and [T, W, D], the latter of a TDT only, and what is to be written."""

    tokens: np.ndarray
    durations: np.ndarray | None
    labels: np.ndarray
    blank: int
    steps: tuple[int, ...]
    sigma: float


def log_softmax(x: np.ndarray) -> np.ndarray:
    """log p of rows."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_sum(values: list[Any], like: np.ndarray) -> Any:
    """log Σ e^value; −inf of nothing."""
    known = [value for value in values if value > -np.inf]
    if not known:
        return like.dtype.type(-np.inf)
    largest = max(known)
    return largest + np.log(np.sum(np.exp(np.array(known) - largest)))


class Transducer(Kernel):
    """RNN-T, and TDT."""

    def label_of(self, lattice: Lattice) -> np.ndarray:
        """The class of the label's arc from each node; that of the last node does not count."""
        return np.append(lattice.labels, 0)

    def cost(self, lattice: Lattice, value: np.ndarray) -> np.ndarray:
        """An arc of a TDT with what it costs."""
        return value - value.dtype.type(lattice.sigma)

    def end(self, arc: Arc, t: int, u: int) -> Any:
        """The logarithm of an arc that ends a path."""
        return arc.value[t, u]

    def occupancy(self, value: Any) -> Any:
        """The share of paths that pass a node, which multiplies its softmax."""
        return np.exp(value)

    def over(self, reduction: str, counts: np.ndarray) -> np.ndarray:
        """What each loss is divided by."""
        size = np.maximum(counts, 1)
        by = {"mean_volume": max(counts.sum(), 1), "mean_batch": len(counts), "mean": len(counts) * size}
        return np.broadcast_to(by.get(reduction, 1), counts.shape)

    def arcs(self, lattice: Lattice) -> list[Arc]:
        """All that leads from nodes."""
        classes = {0: np.full(len(lattice.labels) + 1, lattice.blank), 1: self.label_of(lattice)}
        found = []
        for writes, tokens in classes.items():
            value = lattice.tokens[:, np.arange(tokens.size), tokens].copy()
            if writes:
                value[:, -1] = -np.inf
            if lattice.durations is None:
                found.append(Arc(1 - writes, writes, tokens, -1, value))
                continue
            for i, step in enumerate(lattice.steps):
                if step or writes:
                    own = self.cost(lattice, value + lattice.durations[..., i])
                    found.append(Arc(step, writes, tokens, i, own))
        return found

    def sample(self, lattice: Lattice) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """−log P and its gradients."""
        arcs, (frames, width, _) = self.arcs(lattice), lattice.tokens.shape
        alpha, beta = np.full((2, frames, width), -np.inf, lattice.tokens.dtype)

        def after(arc: Arc, t: int, u: int) -> Any:
            """log of an arc and all that comes after it."""
            s, v = t + arc.frames, u + arc.writes
            if s < frames and v < width:
                return arc.value[t, u] + beta[s, v]
            ends = s == frames and v == width - 1 and not arc.writes
            return self.end(arc, t, u) if ends else -np.inf

        for t, u in np.ndindex(frames, width):
            before = [alpha.dtype.type(0)] if t == u == 0 else []
            for arc in arcs:
                s, v = t - arc.frames, u - arc.writes
                if s >= 0 and v >= 0:
                    before.append(alpha[s, v] + arc.value[s, v])
            alpha[t, u] = log_sum(before, alpha)
            s, v = frames - 1 - t, width - 1 - u
            beta[s, v] = log_sum([after(arc, s, v) for arc in arcs], beta)
        total = beta[0, 0]
        gradient = np.zeros_like(lattice.tokens)
        of_durations = None if lattice.durations is None else np.zeros_like(lattice.durations)
        for t, u in np.ndindex(frames, width):
            passing = self.occupancy(alpha[t, u] + beta[t, u] - total)
            gradient[t, u] = passing * np.exp(lattice.tokens[t, u])
            if of_durations is not None:
                of_durations[t, u] = passing * np.exp(lattice.durations[t, u])  # type: ignore[index]
            for arc in arcs:
                share = np.exp(alpha[t, u] + after(arc, t, u) - total)
                gradient[t, u, arc.tokens[u]] -= share
                if of_durations is not None:
                    of_durations[t, u, arc.duration] -= share
        return -total, gradient, of_durations

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Sample by sample."""
        names = [name for name in ("logits", "token_logits", "duration_logits") if name in inputs]
        wide = {name: self.widened(inputs[name]) for name in names}
        tokens = wide[names[0]]
        counts = np.asarray(inputs["label_lengths"]).astype(np.int64)
        reduction = parameters.get("reduction", "mean_volume" if len(names) == 1 else "mean")
        over = self.over(reduction, counts).astype(tokens.dtype)
        upstream = np.broadcast_to(self.upstream(cotangent, tokens), counts.shape) / over
        grads, losses = (
            {name: np.zeros_like(value) for name, value in wide.items()},
            np.zeros(len(tokens), tokens.dtype),
        )
        for b, (t, u) in enumerate(zip(inputs["logit_lengths"].tolist(), counts.tolist(), strict=True)):
            rows = [log_softmax(wide[name][b, :t, : u + 1]) for name in names]
            steps = tuple(inputs["durations"].tolist()) if len(names) > 1 else ()
            labels = np.asarray(inputs["labels"])[b, :u].astype(np.int64)
            lattice = Lattice(
                rows[0], rows[1] if len(rows) > 1 else None, labels, parameters["blank_token_id"], steps,
                parameters.get("sigma", 0.0),
            )  # fmt: skip
            losses[b], *each = self.sample(lattice)
            for name, own in zip(names, each, strict=False):
                grads[name][b, :t, : u + 1] = upstream[b] * own
        loss = losses if reduction == "none" else (losses / over).sum()
        return loss, {name: grads[name].astype(inputs[name].dtype) for name in names}
