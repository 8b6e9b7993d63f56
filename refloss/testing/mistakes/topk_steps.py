"""Mistaken steps of distillation from a teacher's most probable classes, from the right answer to a case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.cases.topk import TAILS
from refloss.golden.store import evaluate
from refloss.roundoff import real
from refloss.testing.mistakes.alterations import Altered, altered
from refloss.testing.mistakes.guess import USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.verdict import Question

CLAMPED = "negative losses are clamped at 0"
ONLY_NAMED = "other classes than the named ones have no gradient"


def of_topk(asked: Question) -> Iterator[Guess]:
    """Those of a case's function; none where it is another."""
    case = asked.case
    if case.function != "topk_distillation":
        return
    inputs = case.inputs | {name: real(case.inputs[name]) for name in ("student_logits", "teacher_log_probs")}
    tail = case.parameters.get("tail", "drop")
    # "drop" instead of another one is an option that is ignored.
    for other in TAILS:
        if other not in ("drop", tail):
            wrong = Altered(altered(case._replace(inputs=inputs), tail=other)).answer()[1]
            yield Guess(f"{other} instead of {tail}", USUAL, wrong)
    gradient = evaluate(case._replace(inputs=inputs)).grads["student_logits"]
    named = np.zeros(gradient.shape, bool)
    there = ~np.isneginf(inputs["teacher_log_probs"]) & (inputs["teacher_ids"] >= 0)
    for k in range(there.shape[-1]):
        rows = np.nonzero(there[..., k])
        named[(*rows, inputs["teacher_ids"][..., k][rows].astype(np.int64))] = True
    yield Guess(ONLY_NAMED, USUAL, {"grad.student_logits": np.where(named, gradient, 0.0)})
    options = {"reduction": "none"}
    losses = real(evaluate(case._replace(inputs=inputs, parameters=case.parameters | options, grad_output=1.0)).loss)
    if not np.any(losses < 0):
        return
    clamped, reduction = np.maximum(losses, 0.0), case.parameters.get("reduction", "mean")
    count = max(np.count_nonzero(case.inputs.get("mask", np.ones(losses.shape))), 1) if reduction == "mean" else 1
    loss = clamped if reduction == "none" else np.asarray(clamped.sum() / count)
    without = np.where((losses < 0)[..., None], 0.0, gradient)
    yield Guess(CLAMPED, USUAL, {"loss": loss, "grad.student_logits": without})
    yield Guess(CLAMPED, USUAL, {"loss": loss})
