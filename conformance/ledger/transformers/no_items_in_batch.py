"""With num_items_in_batch=0 the gradient at the label is NaN.

Every derivative is divided by 0; at the label autograd divides its two terms first and subtracts infinities. A
trainer that counted no token gets NaN in one class of every row.
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
    topic="cross_entropy",
    case="`num_items_in_batch=0`, or an infinite `grad_output`",
    theirs="the gradient at the label is inf − inf = NaN",
    ours="not followed: −inf",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, labels = torch.tensor([[1.0, 2.0], [0.5, -3.0]]), torch.tensor([0, 1])
    given = {"labels": labels, "vocab_size": 2, "num_items_in_batch": 0}
    _, gradient = value_and_gradient(lambda x: LOSS_MAPPING["ForMaskedLM"](logits=x, **given), logits)
    ours = refloss.masked_lm(logits, labels, num_items_in_batch=0).grads["logits"]
    yield Answer("the gradient at a label", gradient[0, 0], np.nan, -np.inf, ours[0, 0])
