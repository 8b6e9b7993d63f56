"""ForCTCLoss takes its log_softmax in float32, whatever its logits are.

The loss of float64 logits is a float32 number. Whoever checks a port of a model in float64 finds a difference in the
eighth digit, and looks for it in the port.
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
    topic="alignments",
    case="float64 logits given to `ForCTCLoss`",
    theirs="rounded to float32 first",
    ours="not followed: inputs are exact",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits = torch.tensor([[[0.0, 2.0**-30]]], dtype=torch.float64)
    given = {"labels": torch.tensor([[1]]), "logit_lengths": torch.tensor([1]), "blank_token_id": 0}
    theirs = array(LOSS_MAPPING["ForCTC"](logits=logits, **given))
    exact = np.log1p(np.exp(-(2.0**-30)))
    ours = refloss.LOSS_MAPPING["ForCTC"](logits=logits, **given).loss
    yield Answer("loss", theirs, float(np.float32(np.log(2.0))), exact, ours)
