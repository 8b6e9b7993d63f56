"""Cases of the losses of speech, beside those that refloss's generator draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.cases import Case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.cases import Array

_INFINITY, _UNDEFINED = float("inf"), float("nan")


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _ctc(
    name: str, log_probs: Array, targets: Any, frames: Any, lengths: Any, grad_output: Any = -3.5, **options: Any
) -> Case:
    inputs = {
        "log_probs": log_probs,
        "targets": np.asarray(targets),
        "input_lengths": np.asarray(frames),
        "target_lengths": np.asarray(lengths),
    }
    return Case(f"ctc-{name}", "ctc", inputs, options, grad_output)


def _of_logits(name: str, logits: Array, labels: Any, frames: Any, grad_output: Any = -3.5, **options: Any) -> Case:
    inputs = {"logits": logits, "labels": np.asarray(labels), "logit_lengths": np.asarray(frames)}
    return Case(f"ForCTC-{name}", "ForCTC", inputs, {"blank_token_id": 0, **options}, grad_output)


def _cases() -> Iterator[Case]:
    random = np.random.default_rng(41)
    logits = 3.0 * random.standard_normal((12, 3, 6))
    log_probs, frames, lengths = _log_softmax(logits), [12, 9, 7], [4, 2, 3]
    targets = np.array([[1, 1, 2, 1], [5, 3, 0, 0], [4, 2, 4, 0]])
    each = random.standard_normal(3)
    for reduction in ("mean", "sum", "none"):
        cotangent = each if reduction == "none" else -3.5
        infeasible: dict[str, Any] = {"reduction": reduction, "zero_infinity": True}
        yield _ctc(reduction, log_probs, targets, frames, lengths, cotangent, reduction=reduction)
        yield _ctc(f"zero_infinity-{reduction}", log_probs, targets, [12, 9, 2], lengths, cotangent, **infeasible)
        yield _ctc(f"infeasible-{reduction}", log_probs, targets, [4, 9, 7], lengths, cotangent, reduction=reduction)
    yield _ctc("one_after_the_other", log_probs, [1, 1, 2, 1, 5, 3, 4, 2, 4], frames, lengths)
    yield _ctc("one_sequence", log_probs[:, 0], [1, 2, 2], 12, 3, reduction="none", grad_output=np.array(0.7))
    yield _ctc("blank", log_probs, np.where(targets == 5, 0, targets), frames, lengths, blank=5)
    for reduction in ("sum", "none"):
        blanks = np.array([[0, 1, 0, 1], [0, 3, 0, 0], [4, 0, 4, 0]])
        cotangent = each if reduction == "none" else 0.3
        yield _ctc(f"blank_in_target-{reduction}", log_probs, blanks, frames, lengths, cotangent, reduction=reduction)
    yield _ctc("empty_targets", log_probs, targets, frames, [0, 0, 3], reduction="sum")
    yield _ctc("no_frames", log_probs, targets, [0, 9, 7], [0, 2, 3], reduction="sum")
    yield _ctc("int32", log_probs, targets.astype(np.int32), frames, lengths)
    padded = np.where(np.arange(4) < np.array(lengths)[:, None], targets, -100)
    batch = np.ascontiguousarray(logits.transpose(1, 0, 2))
    for reduction in ("mean", "sum", "none"):
        cotangent = each if reduction == "none" else -3.5
        yield _of_logits(reduction, batch, padded, frames, cotangent, reduction=reduction)
    yield _of_logits("zero_infinity", batch, padded, [12, 1, 7], zero_infinity=True)
    yield _of_logits("infeasible", batch, padded, [12, 1, 7], reduction="sum")
    yield _of_logits("blank", batch, np.where(padded == 5, 0, padded), frames, blank_token_id=5)
    yield _of_logits("padded_with_the_blank", batch, np.where(padded == -100, 0, padded), frames)
    yield _of_logits("ignored_inside", batch, [[-100, 1, 0, 2], [5, -100, -100, 3], [0, 0, 0, 0]], frames)
    yield _of_logits("ignore_index", batch, np.where(padded == -100, 5, padded), frames, ignore_index=5)


CASES: tuple[Case, ...] = tuple(_cases())
