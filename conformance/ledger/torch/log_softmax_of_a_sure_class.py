"""log p of a class that leads by 17 is 0 in float32, and so is its loss.

log_softmax takes the logarithm of 1 plus what the others have, and 1 + e^−17 is 1. Confident tokens report a
log-probability of exactly 0, and ratios of such tokens are exactly 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="log_probs",
    case="log p of a sure token",
    theirs="float32: 0 where it leads all others by 17",
    ours="not followed: −4e-8 there, and so on down to float64's least number",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    logits = torch.tensor([[17.0, 0.0]])
    theirs = array(torch.log_softmax(logits, -1))[0, 0]
    ours = refloss.selected_log_probs(logits, [0]).loss
    yield Answer("log p", theirs, 0.0, -np.log1p(np.exp(-17.0)), np.asarray(ours)[0])
