"""hinge_embedding_loss of a target that is neither 1 nor −1 adds both terms, and (m − x) + x is rounded twice.

Exactly it is the margin. Of x = −1e17 the two roundings leave nothing of a margin of 1; of usual numbers they leave
an error of the size of x·2^−24 in float32.
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
    topic="classification",
    case="`hinge_embedding` with a target that is neither 1 nor −1, and a finite x below the margin",
    theirs="(m − x) + x, rounded twice",
    ours="not followed: m",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    x, target = torch.tensor([-1e17], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    theirs = array(functional.hinge_embedding_loss(x, target))
    yield Answer("loss", theirs, 0.0, 1.0, refloss.hinge_embedding(x, target).loss)
