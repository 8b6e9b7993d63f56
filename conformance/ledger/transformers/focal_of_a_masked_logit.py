"""A focal loss of a logit of −inf whose target is 0 is NaN.

It costs nothing: nobody could be surer, and right. The weight p^γ is 0, the cross-entropy 0·(−inf). Classes that a
detector masks spoil its loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.loss.loss_for_object_detection import sigmoid_focal_loss

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="detection",
    case="focal loss at a logit of −inf with target 0",
    theirs="0·inf: NaN",
    ours="not followed: 0",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, target = torch.tensor([[-torch.inf]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    theirs = array(sigmoid_focal_loss(logits, target, 1.0))
    yield Answer("loss", theirs, np.nan, 0.0, refloss.sigmoid_focal(logits, target, 1.0, reduction="sum").loss)
