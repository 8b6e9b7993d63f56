"""A row of hidden states that is ignored and not a number spoils the gradients of all weights.

Its share of them is 0 times the row: 0·NaN. What stands in padded positions is nobody's business, and here it decides
whether a step can be taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="linear_cross_entropy",
    case="a row that is ignored and holds NaN or inf",
    theirs="NaN in the gradient of the weights",
    ours="not followed: it never leaks",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    weight, labels = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([0, -100])
    for poison in (torch.nan, torch.inf):
        hidden = torch.tensor([[1.0], [poison]], dtype=torch.float64)
        _, gradient = value_and_gradient(lambda w, x=hidden: functional.linear_cross_entropy(x, w, labels), weight)
        ours = refloss.linear_cross_entropy(hidden, weight, labels).grads["linear_weight"]
        yield Answer(f"the gradient beside {poison}", gradient[:, 0], [np.nan] * 2, [-0.5, 0.5], ours[:, 0])
