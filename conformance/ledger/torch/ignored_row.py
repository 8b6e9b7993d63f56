"""An ignored row that holds NaN or an infinity has a gradient of NaN.

The loss leaves the row out, and its backward pass multiplies it by 0: 0·NaN in the one of log_softmax. A padded row
that nobody wrote spoils the gradients of a whole network although it does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="an ignored row that holds NaN, +inf or only −inf",
    theirs="its gradient is NaN (0·NaN in the backward of log_softmax)",
    ours="not followed: 0",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    labels = torch.tensor([0, -100])
    for poison in (torch.nan, torch.inf, -torch.inf):
        logits = torch.tensor([[1.0, 2.0, -1.0], [poison] * 3], dtype=torch.float64)
        _, gradient = value_and_gradient(cross_entropy, logits, labels)
        ours = refloss.cross_entropy(logits, labels).grads["logits"]
        yield Answer(f"the gradient of a row of {poison}", gradient[1], [torch.nan] * 3, [0.0] * 3, ours[1])
