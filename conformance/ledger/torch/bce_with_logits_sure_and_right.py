"""A logit of +inf where the target is 1, or −inf where it is 0, makes the loss NaN instead of 0.

The two terms of x⁺ − x·t are infinite, or one is 0·inf. A masked logit whose target agrees spoils a batch.
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
    topic="classification",
    case="a logit of +inf with a target of 1, −inf with 0",
    theirs="0·inf: NaN",
    ours="followed",
    seen={"torch": "2.13.0"},
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    for x, t in ((torch.inf, 1.0), (-torch.inf, 0.0)):
        logits, target = torch.tensor([x], dtype=torch.float64), torch.tensor([t], dtype=torch.float64)
        theirs = array(functional.binary_cross_entropy_with_logits(logits, target))
        yield Answer(f"the loss of {x}", theirs, np.nan, 0.0, refloss.bce_with_logits(logits, target).loss)
