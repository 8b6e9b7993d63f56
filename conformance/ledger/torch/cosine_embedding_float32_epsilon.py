"""The 1e-12 under the roots of cosine_embedding_loss is a float32 number, in float64 too.

At a vector of zeros it is all that there is: the gradient is off by 2e-9, ten million times what float64 allows.
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
    topic="vectors",
    case="`cosine_embedding`: the 1e-12 in both lengths",
    theirs="a float32 1e-12, 4e-9 off",
    ours="not followed: 1e-12",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    zero, other = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    same = torch.tensor([1])
    _, gradient = value_and_gradient(lambda x: functional.cosine_embedding_loss(x, other, same), zero)
    ours = refloss.cosine_embedding(zero, other, same).grads["input1"]
    recorded, exact = (-1 / np.sqrt(eps * (5 + eps)) for eps in (float(np.float32(1e-12)), 1e-12))
    yield Answer("the gradient at 0", gradient[0, 0], recorded, exact, ours[0, 0])
