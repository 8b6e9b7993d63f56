"""A class of probability 0 and logit −inf makes the loss NaN.

Both say that the class cannot be; 0·(−inf) has no value in floating point. Distributions over a masked vocabulary run
into it. The sum without the class is finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="a probability of 0 at a logit of −inf",
    theirs="0·inf: the loss is NaN",
    ours="followed",
    seen={"torch": "2.13.0"},
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    target = torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64)
    theirs, ours = array(cross_entropy(logits, target)), refloss.cross_entropy(logits, target).loss
    yield Answer("loss", theirs, torch.nan, torch.log(torch.tensor(2.0).double()), ours)
