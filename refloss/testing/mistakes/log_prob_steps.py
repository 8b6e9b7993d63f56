"""Mistaken steps of log-probabilities and entropies, simulated in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.chain import chained
from refloss.golden.store import evaluate
from refloss.roundoff import real
from refloss.testing.mistakes.guess import USUAL, Guess
from refloss.testing.mistakes.softmax_steps import MASKED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.testing.verdict import Question

NO_OWN_ENTRY = "the index's own entry is missing"


def of_log_probs(asked: Question) -> Iterator[Guess]:
    """Those of a case's function; none where it is another."""
    case = asked.case
    if case.function != "selected_log_probs":
        return
    logits = real(case.inputs["logits"])
    result = evaluate(case._replace(inputs=case.inputs | {"logits": logits}))
    gradient = result.grads["logits"]
    yield Guess(NO_OWN_ENTRY, USUAL, {"grad.logits": gradient - _of_index(case, logits)})
    masked = np.isneginf(chained(logits, case.parameters).value).any(axis=-1) & _counts(case, logits)
    if masked.any():
        wrong = {
            "component.entropy": np.where(masked, np.nan, real(result.components["entropy"])),
            "grad.logits": np.where(masked[..., None], np.nan, gradient),
        }
        for names in (tuple(wrong), ("component.entropy",), ("grad.logits",)):
            yield Guess(MASKED, USUAL, {name: wrong[name] for name in names})


def _counts(case: Case, logits: np.ndarray) -> np.ndarray:
    """Which rows do."""
    return np.asarray(case.inputs.get("mask", np.ones(logits.shape[:-1])), bool)


def _of_index(case: Case, logits: np.ndarray) -> np.ndarray:
    """∂z·Σ_k c_k·[v = y_k]."""
    rows, index, given = math.prod(logits.shape[:-1]), case.inputs["index"], case.grad_output
    cotangent = given.get("log_probs", 0.0) if isinstance(given, dict) else given
    counts = np.broadcast_to(_counts(case, logits).reshape(rows, 1), (rows, index.size // max(rows, 1)))
    named = np.where(counts, index.reshape(counts.shape), 0).astype(np.int64)
    pulled = np.zeros((rows, logits.shape[-1]))
    cotangents = np.where(counts, np.broadcast_to(real(cotangent), index.shape).reshape(counts.shape), 0.0)
    np.add.at(pulled, (np.arange(rows)[:, None], named), cotangents)
    return np.asarray(pulled.reshape(logits.shape) * chained(logits, case.parameters).slope)
