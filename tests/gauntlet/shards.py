"""An honest cross-entropy of a vocabulary in parts: what ranks compute and all-reduce, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.rows import CrossEntropy, Rows, as_it_was, by_rows, of_chain

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer


class VocabParallel(CrossEntropy):
    """Ranks have classes each; a loss is told by the first of them."""

    ranks: list[slice]
    share: float  # α
    formula: str

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Classes on the last axis."""
        logits, target = inputs["shards"], inputs["target"]
        x = by_rows(self.widened(logits), logits.ndim - 1)
        ends = np.cumsum(inputs.get("widths", [x.shape[1]])).tolist()
        self.ranks = [slice(*each) for each in zip([0, *ends], ends, strict=False) if each[0] < each[1]]
        self.share, self.formula = parameters.get("label_smoothing", 0.0), parameters.get("label_smoothing_formula", "")
        rows = Rows(
            x,
            logits.shape[:-1],
            self.upstream(cotangent, x).reshape(-1 if np.ndim(cotangent) else ()),
            labels=target.reshape(-1).astype(np.int64),
            ignore_index=parameters.get("ignore_index", -100),
            smoothing=self.smoothing(x.shape[1]),
            reduction=parameters.get("reduction", "mean"),
            **of_chain(parameters),
        )
        loss, gradient, _ = self.solve(rows)
        grads = {"shards": as_it_was(gradient, logits, logits.ndim - 1)}
        return (loss, grads, self.components) if self.components else (loss, grads)

    def smoothing(self, classes: int) -> float:
        """ε over so many classes."""
        is_megatron = self.formula == "megatron" and self.share and classes > 1
        return self.share * classes / (classes - 1) if is_megatron else self.share

    def own_maxima(self, x: np.ndarray) -> np.ndarray:
        """Of each rank: [N, R]."""
        return np.stack([x[:, own].max(axis=1, initial=-np.inf) for own in self.ranks], axis=1)

    def maximum(self, x: np.ndarray) -> np.ndarray:
        """The largest of what ranks find."""
        return np.asarray(self.own_maxima(x).max(axis=1, keepdims=True, initial=-np.inf)) if self.ranks else x[:, :0]

    def total(self, x: np.ndarray, maximum: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """The sum of what ranks add up."""
        return self.sum(np.stack([self.sum(terms[:, own], axis=1) for own in self.ranks], axis=1), axis=1)[:, None]
