"""cross_entropy refuses labels of int32, int16 and int8, and takes uint8.

Datasets hold labels in few bits; each has to be widened to int64 before the loss, eight times what it takes. uint8 is
an exception that heads of transformers, which pad with −100, do not survive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

import refloss
from conformance.ledger.entry import Answer, Entry, raised

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="labels of other dtypes than int64 and uint8",
    theirs="an error; uint8 fails in padding",
    ours="not followed: any integer dtype",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    logits = torch.zeros(2, 3)
    for dtype in (torch.int32, torch.int16, torch.int8):
        labels = torch.tensor([0, 1], dtype=dtype)
        theirs = raised(functional.cross_entropy, logits, labels)
        yield Answer(
            f"loss of {dtype}", theirs, "RuntimeError", np.log(3.0), refloss.cross_entropy(logits, labels).loss
        )
