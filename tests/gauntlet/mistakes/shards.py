"""Mistakes of ranks that have a part of the classes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes import shard_steps, softmax_steps
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, stepped
from tests.gauntlet.shards import VocabParallel

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from tests.gauntlet.rows import Rows

OF = ("vocab_parallel_cross_entropy",)
_LOCAL, _OWN_SOFTMAX, _OWN_MAXIMUM, _NOT_REDUCED, _BY_EACH, *_ = shard_steps.STEPS


def _ranks(case: Case) -> int:
    """How many have classes."""
    return int(np.count_nonzero(case.inputs.get("widths", np.ones(1))))


def _in_parts(case: Case) -> bool:
    return _ranks(case) > 1 and bool((case.inputs["target"] != case.parameters.get("ignore_index", -100)).any())


def _smoothed(case: Case) -> bool:
    return _in_parts(case) and case.parameters.get("label_smoothing", 0.0) > 0


def smoothed_locally(self: VocabParallel, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """By the first rank, among its own classes."""
    own = self.ranks[0]
    share = self.smoothing(own.stop)
    of_label = np.where(self.hard(rows) > 0, log_p, 0).sum(axis=1)
    return np.asarray(-(1 - share) * of_label - share * log_p[:, own].mean(axis=1)) if share else -of_label


def pulled_locally(self: VocabParallel, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    gradient = p.copy()
    for own in self.ranks:
        share = self.smoothing(own.stop - own.start)
        gradient[:, own] -= (1 - share) * self.hard(rows)[:, own] + share / (own.stop - own.start)
    return gradient


def own_lse(self: VocabParallel, below: np.ndarray, terms: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.concatenate([below[:, own] - np.log(terms[:, own].sum(axis=1))[:, None] for own in self.ranks], axis=1)


def own_shares(self: VocabParallel, terms: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.concatenate([terms[:, own] / terms[:, own].sum(axis=1)[:, None] for own in self.ranks], axis=1)


def not_rescaled(self: VocabParallel, x: np.ndarray, maximum: np.ndarray, terms: np.ndarray) -> np.ndarray:
    maxima = self.own_maxima(x)
    sums = [np.exp(x[:, own] - maxima[:, [r]]).sum(axis=1) for r, own in enumerate(self.ranks)]
    return np.asarray(np.sum(sums, axis=0))[:, None]


def of_the_first(self: VocabParallel, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """The label's logit is 0 where another rank has it."""
    label, kept = self.picked(rows), 1 - rows.smoothing
    found = np.take_along_axis(self.chain(rows, rows.x), label[:, None], 1)[:, 0]
    missed = np.where(label < self.ranks[0].stop, 0, kept * found)
    return np.asarray(super(VocabParallel, self).likelihood(rows, q, log_p) + missed)


def in_every_rank(self: VocabParallel, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Ranks without the label take their first class for it."""
    gradient, label = super(VocabParallel, self).derivative(rows, p, q), self.picked(rows)
    for own in self.ranks:
        gradient[:, own.start] -= np.where((label < own.start) | (label >= own.stop), self.mass(rows, q)[:, 0], 0)
    return gradient


SHARD_MISTAKES = [
    Mistake(
        "label smoothing over a rank's classes",
        "NVIDIA/Megatron-LM#737",
        OF,
        stepped(likelihood=smoothed_locally, derivative=pulled_locally),
        _LOCAL,
        _smoothed,
        "where labels are smoothed, and there are several ranks",
    ),
    Mistake(
        "every rank a softmax of its own",
        TUTORIALS,
        OF,
        stepped(log_probabilities=own_lse, probabilities=own_shares),
        _OWN_SOFTMAX,
        _in_parts,
        "where there are several ranks",
    ),
    Mistake(
        "sums of ranks are not rescaled",
        TUTORIALS,
        OF,
        stepped(total=not_rescaled),
        _OWN_MAXIMUM,
        _in_parts,
        "where there are several ranks",
    ),
    Mistake(
        "the label's logit stays where it is",
        TUTORIALS,
        OF,
        stepped(likelihood=of_the_first),
        _NOT_REDUCED,
        _in_parts,
        "where there are several ranks",
    ),
    Mistake(
        "gathered logits are summed by every rank",
        "NVIDIA/Megatron-LM#7452",
        OF,
        stepped(
            total=lambda self, x, maximum, terms: (
                VocabParallel.total(self, x, maximum, terms) * terms.dtype.type(len(self.ranks))
            )
        ),
        _BY_EACH,
        _in_parts,
        "where there are several ranks",
    ),
    Mistake(
        "a pull in every rank",
        "modelscope/ms-swift#9947",
        OF,
        stepped(derivative=in_every_rank),
        next(words for words, (_, step) in softmax_steps.STEPS.items() if step is softmax_steps.foreign_shards),
        _in_parts,
        "where there are several ranks",
    ),
]
