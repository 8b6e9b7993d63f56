"""A loss of sequence classification writes its guess of the problem into the caller's configuration.

Where problem_type is None it is chosen by the labels of the first batch, and kept for all that follow: in the model
that is saved as well.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="classification",
    case="`config.problem_type` is None",
    theirs="`ForSequenceClassificationLoss` writes its choice into the caller's config",
    ours="not followed: the config is left alone",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    given = {"labels": torch.tensor([[0.0, 1.0]]), "pooled_logits": torch.tensor([[0.5, -1.0]])}
    left = []
    for mapping in (LOSS_MAPPING, refloss.LOSS_MAPPING):
        config = SimpleNamespace(num_labels=2, problem_type=None)
        mapping["ForSequenceClassification"](**given, config=config)
        left.append(str(config.problem_type))
    yield Answer("problem_type", left[0], "multi_label_classification", "None", left[1])
