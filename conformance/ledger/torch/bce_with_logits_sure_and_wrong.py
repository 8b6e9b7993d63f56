"""A logit of −inf where the target is 1 makes the loss NaN instead of infinite.

(1 − t)·x is 0·(−inf), before anything is added. An infinite loss says that something impossible happened; NaN says
nothing, and no comparison finds it.
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
    case="`bce_with_logits` at x = −inf, t = 1",
    theirs="0·inf: NaN",
    ours="not followed: +inf",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, target = torch.tensor([-torch.inf], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    theirs = array(functional.binary_cross_entropy_with_logits(logits, target))
    yield Answer("loss", theirs, np.nan, np.inf, refloss.bce_with_logits(logits, target).loss)
