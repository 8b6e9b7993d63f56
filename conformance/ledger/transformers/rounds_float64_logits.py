"""The language heads round float64 logits to float32.

logits.float() is meant for half precision, and takes digits from whoever checks a model in float64: the loss of an
exact test is right to seven of them.
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
    topic="cross_entropy",
    case="float64 logits given to `ForCausalLMLoss`, `ForMaskedLMLoss`",
    theirs="rounded to float32 first (`logits.float()`)",
    ours="not followed: inputs are exact",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, labels = torch.tensor([[2.0**-30, 0.0]], dtype=torch.float64), torch.tensor([0])
    theirs = array(LOSS_MAPPING["ForMaskedLM"](logits=logits, labels=labels, vocab_size=2))
    exact = np.log1p(np.exp(-(2.0**-30)))
    yield Answer("loss", theirs, float(np.float32(np.log(2.0))), exact, refloss.masked_lm(logits, labels).loss)
