"""Mistakes with a teacher's most probable classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.golden.store import evaluate
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, ignored, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from tests.gauntlet.topk import TopkDistillation

OF = ("topk_distillation",)
_CLAMP = -10.0
# Losses, and shares of slopes and masses, below it may be rounding errors.
_LEAST, _SHARE = 2.0**-14, 2.0**-20


def _named(case: Case) -> np.ndarray:
    """Log-probabilities of classes that are named in rows that count."""
    log_probs = case.inputs["teacher_log_probs"].astype(np.float64)
    counts = np.asarray(case.inputs.get("mask", np.ones(log_probs.shape[:-1])), bool)
    return log_probs[counts[..., None] & ~np.isneginf(log_probs)]


def _is_negative(case: Case) -> bool:
    """Where a row's loss is below 0."""
    losses = evaluate(case._replace(parameters=case.parameters | {"reduction": "none"}, grad_output=1.0)).loss
    return bool(np.any(np.asarray(losses) < -_LEAST))


def _others_have_slopes(case: Case) -> bool:
    """Where classes that are not named have a gradient."""
    gradient = evaluate(case).grads["student_logits"].astype(np.float64)
    named = np.zeros(gradient.shape, bool)
    ids, log_probs = case.inputs["teacher_ids"], case.inputs["teacher_log_probs"]
    there = ~np.isneginf(log_probs)
    np.put_along_axis(named, np.where(there, ids, ids.max(axis=-1, keepdims=True)).astype(np.int64), True, axis=-1)
    size = np.abs(np.nan_to_num(gradient))
    return bool((size * ~named).max() > _SHARE * size.max() > 0)


def _has_tail(case: Case) -> bool:
    """Where another tail makes a difference."""
    dropped = evaluate(case._replace(parameters=case.parameters | {"tail": "drop"}))
    right = evaluate(case)
    slopes = [np.nan_to_num(each.grads["student_logits"].astype(np.float64)) for each in (dropped, right)]
    return bool(np.abs(slopes[0] - slopes[1]).max() > _SHARE * np.abs(slopes[1]).max())


def _not_negative(self: TopkDistillation, losses: np.ndarray) -> np.ndarray:
    return np.asarray(losses >= 0, losses.dtype)


def _mean_of_all(self: TopkDistillation, counts: np.ndarray) -> int:
    return counts.size


def _within(self: TopkDistillation, log_p: np.ndarray) -> np.ndarray:
    return np.where(np.isneginf(log_p), log_p, np.maximum(log_p, _CLAMP)).astype(log_p.dtype)


def _renormalised(self: TopkDistillation, log_p: np.ndarray) -> np.ndarray:
    rows = log_p.reshape(-1, log_p.shape[-1])
    lse = self.lse(rows)
    return np.asarray(rows - np.where(np.isneginf(lse), 0, lse)).reshape(log_p.shape)


def _one_sided(case: Case) -> bool:
    """Where a teacher has said less than all, or more, and its share is not divided out."""
    log_probs = case.inputs["teacher_log_probs"].astype(np.float64)
    counts = np.asarray(case.inputs.get("mask", np.ones(log_probs.shape[:-1])), bool)
    shares = np.exp(log_probs).sum(axis=-1)[counts]
    return case.parameters.get("tail") != "renormalise" and bool(np.any(np.abs(shares[shares > 0] - 1) > _SHARE))


def _only_named(self: TopkDistillation, gradient: np.ndarray, is_named: np.ndarray) -> np.ndarray:
    return np.where(is_named, gradient, 0).astype(gradient.dtype)


def _always(tail: str) -> Any:
    return lambda self, parameters: tail


TOPK_MISTAKES = [
    Mistake(
        "a loss below 0 is clamped, with its gradient",
        "verl-project/verl#7856",
        OF,
        stepped(clamped=lambda self, losses: np.maximum(losses, 0), kept=_not_negative),
        "negative losses are clamped at 0",
        _is_negative,
        "where a row's loss is negative",
    ),
    ignored("tail", TUTORIALS, OF)._replace(
        name="what is not named is dropped",
        shows=_has_tail,
        why="where a tail makes a difference",
    ),
    Mistake(
        "only the teacher is renormalised",
        TUTORIALS,
        OF,
        stepped(teacher=_renormalised),
        "only the teacher is renormalised",
        _one_sided,
        "where a teacher does not say all",
    ),
    Mistake(
        "log-probabilities clamped at −10",
        TUTORIALS,
        OF,
        stepped(teacher=_within),
        "log-probabilities are clamped",
        lambda case: bool(np.any(_named(case) < _CLAMP)),
        "where a teacher is that sure",
    ),
    Mistake(
        "only named classes have a gradient",
        TUTORIALS,
        OF,
        stepped(others=_only_named),
        "other classes than the named ones have no gradient",
        _others_have_slopes,
        "where others have one",
    ),
    ignored("temperature", TUTORIALS, OF)._replace(
        name="the student's temperature is forgotten",
        shows=lambda case: case.parameters.get("temperature", 1.0) != 1.0,
    ),
    Mistake(
        "a mean over rows that do not count",
        "verl-project/verl#7200",
        OF,
        stepped(divisor=_mean_of_all),
        "a mean over all rows instead of the rows that count",
        lambda case: case.parameters.get("reduction", "mean") == "mean" and not np.all(case.inputs.get("mask", True)),
        "where rows do not count",
    ),
]
