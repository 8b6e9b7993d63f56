"""Question answering takes the length of the start's logits for the end as well.

A position beyond it counts as ignored for both, so that logits of two lengths lose an answer that is within theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="classification",
    case="`question_answering` with logits of two lengths",
    theirs="the start's length is the ignored position for both",
    ours="not followed: each its own",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    given = {
        "start_logits": torch.zeros(1, 2),
        "end_logits": torch.zeros(1, 4),
        "start_positions": torch.tensor([1]),
        "end_positions": torch.tensor([3]),
    }
    theirs, ours = LOSS_MAPPING["ForQuestionAnswering"](**given), refloss.LOSS_MAPPING["ForQuestionAnswering"](**given)
    # Beyond 2, the end of the start's, the end's answer does not count: the mean of nothing is NaN.
    yield Answer("loss", array(theirs), np.nan, (np.log(2.0) + np.log(4.0)) / 2, ours.loss)
