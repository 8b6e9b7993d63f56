"""Computed by chunks, a linear cross-entropy without a row that counts has gradients of NaN.

The same function has gradients of 0 where it makes all logits at once, as cross_entropy has. A batch of nothing but
padding then leaves NaN in the weights, or does not, depending on how memory was saved.
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
    case='no row counts, `"mean"`',
    theirs="loss NaN; gradients 0, with `options=` (by chunks) NaN",
    ours="NaN, 0",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    hidden, weight = torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    labels = torch.tensor([-100, -100])
    options = torch.nn.LinearCrossEntropyOptions()
    _, gradient = value_and_gradient(
        lambda x: functional.linear_cross_entropy(x, weight, labels, options=options), hidden
    )
    ours = refloss.linear_cross_entropy(hidden, weight, labels).grads["input"]
    yield Answer("the gradient of the input", gradient, np.full((2, 3), np.nan), np.zeros((2, 3)), ours)
