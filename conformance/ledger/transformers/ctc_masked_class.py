"""A logit of −inf makes every gradient of its frame NaN.

CTC's gradient of log-probabilities is NaN at a class of −inf, and log_softmax spreads it over the row. A vocabulary
that is padded with −inf cannot be trained by CTC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="alignments",
    case="`ForCTCLoss`: a logit of −inf",
    theirs="the gradient of its frame is NaN (in the backward of log_softmax)",
    ours="not followed: 0 there, and finite beside it",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits = torch.tensor([[[0.0, 1.0, -torch.inf]] * 2], dtype=torch.float64)
    given = {"labels": torch.tensor([[1]]), "logit_lengths": torch.tensor([2]), "blank_token_id": 0}
    _, gradient = value_and_gradient(lambda x: LOSS_MAPPING["ForCTC"](logits=x, **given), logits)
    ours = refloss.LOSS_MAPPING["ForCTC"](logits=logits, **given).grads["logits"]
    # Three of the four sequences of two classes spell the label, −log(2pq + p²) with q = 1 − p.
    p = 1 / (1 + np.exp(-1.0))
    slope = 2 * p * (1 - p) ** 2 / (2 * p * (1 - p) + p * p) / 2
    exact = [slope, -slope, 0.0]
    yield Answer("the gradient of a frame", gradient[0, 0], [np.nan] * 3, exact, ours[0, 0])
