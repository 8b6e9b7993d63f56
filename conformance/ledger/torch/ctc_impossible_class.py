"""The gradient of ctc_loss at a log-probability of −inf is NaN.

It is e^lp − γ, made of logarithms: −inf less −inf. A class that the vocabulary masks needs no gradient, and its exact
one is 0.
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
    topic="alignments",
    case="`ctc_loss`: a log-probability of −inf",
    theirs="the gradient at that class is NaN (−inf less −inf)",
    ours="not followed: 0",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    log_probs = torch.log_softmax(torch.tensor([[[0.0, 1.0, -torch.inf]]] * 2, dtype=torch.float64), -1)
    given = torch.tensor([[1]]), torch.tensor([2]), torch.tensor([1])
    _, gradient = value_and_gradient(lambda lp: functional.ctc_loss(lp, *given), log_probs)
    ours = refloss.ctc(log_probs, *given).grads["log_probs"]
    yield Answer("the gradient at the class", gradient[:, 0, 2], [np.nan] * 2, [0.0] * 2, ours[:, 0, 2])
