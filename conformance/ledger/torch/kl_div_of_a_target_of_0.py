"""The derivative of kl_div in a target of 0 is NaN.

t·log t has the derivative log t + 1, which is −inf there, less the input. Autograd multiplies 0 by infinity. A
teacher that is trained through a hard target has no gradient at all.
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
    case="`kl_div`: derivative in a target of 0",
    theirs="NaN",
    ours="followed",
    seen={"torch": "2.13.0"},
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    log_q, target = torch.tensor([-1.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda t: functional.kl_div(log_q, t, reduction="sum"), target)
    ours = refloss.kl_div(log_q, target, reduction="sum").grads["target"]
    yield Answer("the derivative in the target", gradient, [np.nan], [-np.inf], ours)
