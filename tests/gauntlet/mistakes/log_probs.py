"""Mistakes with log-probabilities of indices and entropies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.golden.store import evaluate
from refloss.testing.mistakes.log_prob_steps import NO_OWN_ENTRY
from refloss.testing.mistakes.softmax_steps import MASKED
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, ignored, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case

OF = ("selected_log_probs", "linear_selected_log_probs")
# Slopes below it are lost in sums of larger ones.
_LEAST = 2.0**-10


def _cotangent(case: Case, name: str) -> bool:
    """Whether a component has one."""
    given = case.grad_output
    return bool(np.any(np.asarray(given.get(name, 0.0) if isinstance(given, dict) else (name == "log_probs") * 1.0)))


def _masks(case: Case) -> bool:
    """Where a class of a row that counts is −inf, and its logits are not capped."""
    logits = case.inputs.get("logits", case.inputs.get("linear_bias", np.zeros(1))).astype(np.float64)
    counts = np.asarray(case.inputs.get("mask", np.ones(logits.shape[:-1])), bool)
    masked = np.isneginf(logits[counts] if "logits" in case.inputs else logits).any() and counts.any()
    return bool(masked) and "softcap" not in case.parameters


def _has_slope_of_entropy(case: Case) -> bool:
    """Where it matters: the entropy has a cotangent, and rows are neither sure nor alike."""
    result = evaluate(case._replace(grad_output={"entropy": 1.0}))
    return _cotangent(case, "entropy") and any(
        float(np.abs(value.astype(np.float64)).max()) > _LEAST for value in result.grads.values()
    )


LOG_PROB_MISTAKES = [
    ignored("temperature", "radixark/miles#68", OF)._replace(name="temperature is ignored by log-probabilities"),
    Mistake(
        "the temperature is forgotten in the gradient",
        TUTORIALS,
        OF,
        stepped(slope=lambda self, slope, temperature: slope),
        "off by a constant factor",
        lambda case: case.parameters.get("temperature", 1.0) != 1.0,
        "where a temperature is given",
    ),
    Mistake(
        "entropy is p·log p, NaN replaced",
        "huggingface/trl#7252",
        OF,
        stepped(
            surprise=lambda self, p, log_p: -log_p,
            entropy_slope=lambda self, p, surprise, entropy: p * (surprise - entropy),
        ),
        MASKED,
        _masks,
        "where a class is −inf",
    ),
    Mistake(
        "the entropy is detached",
        "huggingface/trl#7221",
        OF,
        stepped(entropy_slope=lambda self, p, surprise, entropy: np.zeros_like(p)),
        "the entropy has no gradient",
        _has_slope_of_entropy,
        "where the entropy has an upstream gradient",
    ),
    Mistake(
        "a bonus for a penalty",
        TUTORIALS,
        OF,
        stepped(entropy_slope=lambda self, p, surprise, entropy: p * (entropy - surprise)),
        "the entropy's gradient has the wrong sign",
        _has_slope_of_entropy,
        "where the entropy has an upstream gradient",
    ),
    Mistake(
        "shards without the index have no gradient",
        "modelscope/ms-swift#9947",
        OF,
        stepped(hits=lambda self, index, classes: np.zeros((*index.shape, classes), bool)),
        NO_OWN_ENTRY,
        lambda case: _cotangent(case, "log_probs"),
        "where the log-probabilities have an upstream gradient",
    ),
    Mistake(
        "the mask is ignored",
        TUTORIALS,
        OF,
        stepped(counted=lambda self, inputs, rows: np.ones(rows, bool)),
        "ignored rows are included",
        lambda case: "mask" in case.inputs and not np.all(case.inputs["mask"]),
        "where rows do not count",
    ),
]
