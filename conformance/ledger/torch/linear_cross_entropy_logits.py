"""A linear cross-entropy in bfloat16 is that of logits that were rounded to bfloat16.

The layer's outputs are written down in the type of its input, at 128 in steps of 1, before a softmax sees them. A
loss can be off by more than anything that its own formula does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="linear_cross_entropy",
    case="logits",
    theirs="written down in the type of the input",
    ours="exact; `logits_dtype=` for written ones",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    hidden = torch.tensor([[128.0, 1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[1.0, 0.25], [1.0, 0.0]], dtype=torch.bfloat16)
    label = torch.tensor([0])
    theirs = array(functional.linear_cross_entropy(hidden, weight, label))
    # Logits of 128.25 and 128; in bfloat16 both are 128.
    exact = np.log1p(np.exp(-0.25))
    yield Answer("loss", theirs, np.log(2.0), exact, refloss.linear_cross_entropy(hidden, weight, label).loss, 2**-8)
