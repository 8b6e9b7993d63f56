"""1 less the cosine of parallel vectors is what rounding leaves of it.

The cosine is a rounded quotient next to 1, and the loss a multiple of 1e-16. Near its optimum, where embeddings
agree, the loss is noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="vectors",
    case="`cosine_embedding` of parallel vectors",
    theirs="1 less a rounded quotient: 2.0006e-13 in float64 for (1, 2) with itself",
    ours="not followed: 2e-13, as the formula has it",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    x, same = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([1])
    theirs = array(functional.cosine_embedding_loss(x, x, same))
    # 1 − 5/(5 + ε), ε = 1e-12.
    yield Answer("loss", theirs, 2.000621890374532e-13, 1e-12 / (5 + 1e-12), refloss.cosine_embedding(x, x, same).loss)
