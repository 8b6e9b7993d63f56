"""The derivative of a binary cross-entropy of float64 is divided by a float32 number.

The least p·(1 − p) is 1e-12, and its literal is float32's: 9.999999960041972e-13. At a prediction of 0 or 1 the
derivative is off by 4e-9, ten million times what float64 allows.
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
    case="`bce`: the 1e-12 in its derivative",
    theirs="a float32 1e-12 in float64 too, 4e-9 off",
    ours="not followed: 1e-12",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    p, target = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda x: functional.binary_cross_entropy(x, target), p)
    recorded = -1 / float(np.float32(1e-12))
    yield Answer("the derivative at 0", gradient, [recorded], [-1e12], refloss.bce(p, target).grads["input"])
