"""The loss of logits near the end of float32 is infinite though it has a number.

log_softmax subtracts the row's maximum first, and the difference of two numbers of opposite signs overflows. What is
masked by the least float32, and happens to be the label, costs infinity instead of much.
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
    case="float32 logits near ±3.4e38",
    theirs="the difference overflows: loss inf",
    ours="not followed: the finite difference, in float64",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    largest = torch.finfo(torch.float32).max
    logits, label = torch.tensor([[-largest, largest]]), torch.tensor([0])
    ours = refloss.cross_entropy(logits, label).loss
    yield Answer("loss", array(cross_entropy(logits, label)), torch.inf, 2 * largest, ours)
