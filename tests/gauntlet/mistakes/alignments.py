"""Mistakes of losses that sum over alignments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.gauntlet.honest import ALIGNMENTS
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, has, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from tests.gauntlet.alignments import Ctc


def always_skipping(self: Ctc, states: np.ndarray) -> np.ndarray:
    skips = np.zeros(len(states), bool)
    skips[3::2] = True
    return skips


def over_all_labels(self: Ctc, lengths: np.ndarray) -> np.ndarray:
    return np.full_like(lengths, 1 / lengths.sum())


def labels_of(case: Case) -> list[np.ndarray]:
    """The labels of every sequence."""
    if case.function == "ctc":
        targets, lengths = case.inputs["targets"], np.reshape(case.inputs["target_lengths"], -1)
        ends = np.cumsum(lengths)
        rows = targets if targets.ndim == 2 else [targets[e - n : e] for e, n in zip(ends, lengths, strict=True)]
        return [row[:n] for row, n in zip(rows, lengths, strict=True)]
    ignored, blank = case.parameters.get("ignore_index", -100), case.parameters["blank_token_id"]
    return [row[(row != ignored) & (row != blank)] for row in case.inputs["labels"]]


def repeats(case: Case) -> bool:
    """Whether a label follows itself."""
    return any((labels[1:] == labels[:-1]).any() for labels in labels_of(case))


def has_lengths_and_mean(case: Case) -> bool:
    """Whether a mean is over targets of several lengths."""
    lengths = {max(len(labels), 1) for labels in labels_of(case)}
    return case.parameters.get("reduction", "mean") == "mean" and len(lengths) > 1


def is_padded(case: Case) -> bool:
    """Whether there are frames beyond a length."""
    frames = case.inputs.get("input_lengths", case.inputs.get("logit_lengths"))
    length = case.inputs["log_probs"].shape[0] if case.function == "ctc" else case.inputs["logits"].shape[1]
    return bool((np.asarray(frames) < length).any())


def other_blank(case: Case) -> bool:
    """Whether blank is not class 0."""
    return case.parameters.get("blank", case.parameters.get("blank_token_id", 0)) != 0


ALIGNMENT_MISTAKES = [
    Mistake(
        "repeated labels without a blank between them",
        TUTORIALS,
        ALIGNMENTS,
        stepped(may_skip=always_skipping),
        "a label may follow itself without a blank between them",
        repeats,
        "where a label follows itself",
    ),
    Mistake(
        "mean over the sum of target lengths",
        TUTORIALS,
        ALIGNMENTS,
        stepped(weights=over_all_labels),
        "divided by the sum of all target lengths",
        has_lengths_and_mean,
        "where a mean is over targets of several lengths",
    ),
    Mistake(
        "gradient of frames beyond the length",
        TUTORIALS,
        ALIGNMENTS,
        stepped(counted=lambda self, sequence: len(sequence.log_p)),
        "frames beyond the length have a gradient",
        is_padded,
        "where there are frames beyond a length",
    ),
    Mistake(
        "zero_infinity for the loss alone",
        TUTORIALS,
        ALIGNMENTS,
        stepped(vanished=lambda self, gradient: gradient),
        "zero_infinity is ignored",
        has("zero_infinity"),
        "where zero_infinity is given",
    ),
    Mistake(
        "blank is class 0",
        TUTORIALS,
        ALIGNMENTS,
        stepped(blank=lambda self, parameters: 0),
        "blank is ignored",
        other_blank,
        "where blank is another class",
    ),
    Mistake(
        "upstream gradient ignored by CTC",
        "pytorch/pytorch#11750",
        ALIGNMENTS,
        stepped(upstream=lambda self, cotangent, like: np.ones((), like.dtype)),
        "upstream gradient ignored",
    ),
]
