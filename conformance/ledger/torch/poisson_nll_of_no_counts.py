"""With full=True the derivative of poisson_nll_loss in a target of 0 is NaN.

Stirling's term is computed for every target and then set to 0 for small ones; the backward pass multiplies that 0 by
the logarithm of 0.
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
    topic="classification",
    case="`poisson_nll`, `full`: derivative in a target of 0 or less, which has no Stirling term",
    theirs="0·log 0: NaN",
    ours="followed",
    seen={"torch": "2.13.0"},
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    x, target = torch.tensor([0.5], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda t: functional.poisson_nll_loss(x, t, full=True), target)
    ours = refloss.poisson_nll(x, target, full=True).grads["target"]
    yield Answer("the derivative in the target", gradient, [np.nan], [-0.5], ours)
