"""soft_margin_loss is log(1 + exp(−y·x)) as it is written: from 89 on it is infinite in float32, and its gradient NaN.

−y·x is finite and so is its loss. One element that is far on the wrong side, where a loss matters most, ends
training.
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
    case="`soft_margin` where e^(−y·x) overflows, beyond 88 in float32",
    theirs="the loss is inf, the gradient NaN",
    ours="not followed: −y·x, and −y",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    x, y = torch.tensor([-100.0]), torch.ones(1)
    loss, gradient = value_and_gradient(lambda given: functional.soft_margin_loss(given, y), x)
    ours = refloss.soft_margin(x, y)
    yield Answer("loss", loss, np.inf, 100.0, ours.loss)
    yield Answer("gradient", gradient, [np.nan], [-1.0], ours.grads["input"])
