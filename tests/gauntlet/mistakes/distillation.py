"""Mistakes with divergences of a student from its teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.golden.store import evaluate
from refloss.testing.mistakes.distillation_steps import NO_ENTROPY, ZEROS_UNDEFINED
from tests.gauntlet.distillation import Distillation
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case

OF = ("distillation",)
# What is lost beside a divergence in any format.
_LEAST = 2.0**-10


def _kind(case: Case) -> str:
    return str(case.parameters.get("divergence", "forward_kl"))


def _rows(case: Case) -> np.ndarray:
    """Which rows count."""
    return np.asarray(case.inputs.get("mask", np.ones(case.inputs["student_logits"].shape[:-1])), bool)


def _says(case: Case) -> bool:
    """Where rows count that differ."""
    return bool(np.max(evaluate(case).loss, initial=0.0) > _LEAST)


def _masks(case: Case, *kinds: str) -> bool:
    """Where a class of a row that counts has no probability in both."""
    arrays = [case.inputs[name].astype(np.float64)[_rows(case)] for name in ("student_logits", "teacher_logits")]
    both = np.isneginf(arrays[0]) & np.isneginf(arrays[1])
    return bool(both.any()) and _kind(case) in kinds


def _differs(case: Case) -> bool:
    """Whether both directions do."""
    other = {"forward_kl": "reverse_kl", "reverse_kl": "forward_kl"}[_kind(case)]
    swapped = case._replace(parameters=case.parameters | {"divergence": other})
    ours, theirs = (np.asarray(evaluate(each).loss) for each in (case, swapped))
    return not np.allclose(ours, theirs, rtol=1e-3, equal_nan=True)


def _swapped(case: Case) -> bool:
    return _kind(case) == "jsd" and case.parameters.get("beta", 0.5) != 0.5


def _heated(case: Case) -> bool:
    return case.parameters.get("temperature", 1.0) != 1.0


def undefined(self: Distillation, p: np.ndarray, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    return log_p - log_q


def student_alone(self: Distillation, x: np.ndarray, temperature: np.ndarray, is_teacher: bool) -> np.ndarray:
    return x if is_teacher else x / temperature


def cross_entropy(self: Distillation, log_s: np.ndarray, log_t: np.ndarray, kind: str, share: float) -> Any:
    loss, of_s, of_t = Distillation.divergence(self, log_s, log_t, kind, share)
    t = np.exp(log_t)
    return (loss - (t * np.where(t > 0, log_t, 0)).sum(axis=1) if kind == "forward_kl" else loss), of_s, of_t


def other_way(self: Distillation, parameters: dict[str, Any]) -> str:
    kind = str(parameters.get("divergence", "forward_kl"))
    return {"forward_kl": "reverse_kl", "reverse_kl": "forward_kl"}.get(kind, kind)


DISTILLATION_MISTAKES = [
    Mistake(
        "KL the other way round",
        TUTORIALS,
        OF,
        stepped(kind=other_way),
        "reverse_kl instead of forward_kl",
        lambda case: _kind(case) in ("forward_kl", "reverse_kl") and _says(case) and _differs(case),
        "where a KL is asked for",
    ),
    Mistake(
        "β weighs the student",
        "modelscope/ms-swift#10213",
        OF,
        stepped(share=lambda self, parameters: 1.0 - float(parameters.get("beta", 0.5))),
        "β is swapped",
        _swapped,
        "where β is not a half",
    ),
    Mistake(
        "the temperature is the student's alone",
        TUTORIALS,
        OF,
        stepped(softened=student_alone),
        "the temperature is forgotten for teacher_logits",
        lambda case: _heated(case) and _says(case),
        "where a temperature is given",
    ),
    Mistake(
        "losses are multiplied by τ² unasked",
        TUTORIALS,
        OF,
        stepped(factor=lambda self, parameters: float(parameters.get("temperature", 1.0)) ** 2),
        "losses are multiplied by τ²",
        lambda case: _heated(case) and not case.parameters.get("temperature_squared") and _says(case),
        "where a temperature is given, but not its square",
    ),
    Mistake(
        "a mean over rows and classes",
        "huggingface/trl#4105",
        OF,
        stepped(divisor=lambda self, counts, classes: float(counts.sum() * classes)),
        "a mean over all elements instead of the rows",
        lambda case: (
            case.parameters.get("reduction", "mean") == "mean"
            and case.inputs["student_logits"].shape[-1] > 1
            and _says(case)
        ),
        "where a mean is asked for",
    ),
    Mistake(
        "masked rows are divided by",
        TUTORIALS,
        OF,
        stepped(divisor=lambda self, counts, classes: float(counts.size)),
        "a mean over all rows instead of the rows that count",
        lambda case: (
            case.parameters.get("reduction", "mean") == "mean"
            and not _rows(case).all()
            and (_says(case) or not _rows(case).any())
        ),
        "where rows do not count",
    ),
    Mistake(
        "masked rows are distilled",
        TUTORIALS,
        OF,
        stepped(counted=lambda self, inputs, shape: np.ones(shape, bool).reshape(-1)),
        "ignored rows are included",
        lambda case: not _rows(case).all(),
        "where rows do not count",
    ),
    Mistake(
        "0·log 0 is undefined",
        "Soup#719",
        OF,
        stepped(ratio=undefined),
        ZEROS_UNDEFINED,
        lambda case: _masks(case, "forward_kl", "reverse_kl", "jsd"),
        "where both mask a class",
    ),
    Mistake(
        "the cross-entropy with the teacher",
        TUTORIALS,
        OF,
        stepped(divergence=cross_entropy),
        NO_ENTROPY,
        lambda case: _kind(case) == "forward_kl" and bool(np.isfinite(evaluate(case).loss).all()),
        "in forward_kl",
    ),
    Mistake(
        "the teacher is detached",
        TUTORIALS,
        OF,
        stepped(of_teacher=lambda self, slope: np.zeros_like(slope)),
        "zero everywhere",
        _says,
        "where rows that count differ",
    ),
]
