"""Mistaken formulas of sums over alignments."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.golden.store import evaluate
from refloss.roundoff import real
from refloss.testing.mistakes.alterations import sequence_labels
from refloss.testing.mistakes.guess import USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.testing.verdict import Question


class _Batch(NamedTuple):
    """Sequences of a case, whichever axes it has them in."""

    log_p: np.ndarray  # [T, N, C]
    labels: list[np.ndarray]
    frames: np.ndarray  # [N]
    weights: np.ndarray  # [N], what each gradient is multiplied by


def of_alignments(asked: Question) -> Iterator[Guess]:
    """Those of a case's function; none where it has no alignments."""
    if asked.case.function not in ("ctc", "ctc_of_logits"):
        return
    batch = _batch(asked.case)
    if (batch.frames < len(batch.log_p)).any():
        yield Guess("frames beyond the length have a gradient", USUAL, _beyond_lengths(asked, batch))
    if any((labels[1:] == labels[:-1]).any() for labels in batch.labels):
        yield _without_blanks(asked, batch)


def _batch(case: Case) -> _Batch:
    if case.function == "ctc":
        values = real(case.inputs["log_probs"])
        log_p, frames = values if values.ndim == 3 else values[:, None], np.reshape(case.inputs["input_lengths"], -1)
    else:
        values = real(case.inputs["logits"]).transpose(1, 0, 2)
        shifted = values - values.max(axis=-1, keepdims=True)
        log_p, frames = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), case.inputs["logit_lengths"]
    labels = sequence_labels(case)
    is_mean = case.parameters.get("reduction", "mean") == "mean"
    over = [max(len(each), 1) * len(labels) if is_mean else 1 for each in labels]
    return _Batch(log_p, labels, frames, np.broadcast_to(real(case.grad_output), len(over)) / over)


def _probabilities(batch: _Batch, nll: np.ndarray) -> np.ndarray:
    """Those of all frames, times what gradients are multiplied by; none of a sequence without a finite loss."""
    known = np.isfinite(nll.reshape(-1))
    return np.where(known[:, None], batch.weights[:, None] * np.exp(batch.log_p), 0.0)


def _counted(batch: _Batch) -> np.ndarray:
    """Whether a frame counts, [T, N, 1]."""
    return (np.arange(len(batch.log_p))[:, None] < batch.frames)[:, :, None]


def _as_gradient(case: Case, values: np.ndarray) -> dict[str, np.ndarray]:
    """Values [T, N, C] in the axes of the input that they are the gradient of."""
    if case.function == "ctc":
        return {"grad.log_probs": values.reshape(case.inputs["log_probs"].shape)}
    return {"grad.logits": values.transpose(1, 0, 2)}


def _beyond_lengths(asked: Question, batch: _Batch) -> dict[str, np.ndarray]:
    """c·p where no alignment is."""
    p = _probabilities(batch, real(asked.result.intermediates["nll"]))
    beyond = _as_gradient(asked.case, np.where(_counted(batch), 0.0, p))
    return {name: real(asked.expected[name]) + values for name, values in beyond.items()}


def _without_blanks(asked: Question, batch: _Batch) -> Guess:
    """Labels that repeat are of a class of their own, as probable as theirs."""
    case, classes = asked.case, batch.log_p.shape[-1]
    targets = [_alternating(labels, classes) for labels in batch.labels]
    other = case._replace(
        function="ctc",
        inputs={
            "log_probs": np.concatenate([batch.log_p, batch.log_p], axis=-1),
            "targets": np.concatenate(targets),
            "input_lengths": batch.frames,
            "target_lengths": np.array([len(labels) for labels in targets]),
        },
        parameters={
            "blank": case.parameters.get("blank", case.parameters.get("blank_token_id", 0)),
            "reduction": case.parameters.get("reduction", "mean"),
            "zero_infinity": case.parameters.get("zero_infinity", False),
        },
    )
    result = evaluate(other)
    p, gradient = _probabilities(batch, real(result.intermediates["nll"])), result.grads["log_probs"]
    p = np.where(_counted(batch), p, 0.0)
    values = _as_gradient(case, gradient[..., :classes] + gradient[..., classes:] - p)
    loss = np.reshape(np.asarray(result.loss), np.shape(asked.result.loss))
    words = "a label may follow itself without a blank between them"
    return Guess(words, USUAL, {"loss": loss, **values}, magnitudes=_as_gradient(case, np.abs(p)))


def _alternating(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels, every second one of a run of equal ones as the class that stands for it."""
    others = np.zeros(len(labels), bool)
    for i in range(1, len(labels)):
        others[i] = labels[i] == labels[i - 1] and not others[i - 1]
    return np.asarray(labels.astype(np.int64) + classes * others)
