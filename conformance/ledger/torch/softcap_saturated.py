"""Where a softcap c·tanh(z/c) is saturated, its derivative is exactly 0.

Autograd has 1 − tanh², and tanh is 1 from 9 on in float32 and from 19 on in float64. A logit that has grown beyond nine
times its cap cannot be trained back; the true derivative is small there and not 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="softcap c·tanh(z/c) in float32 beyond |z/c| = 9, in float64 beyond 19: its derivative",
    theirs="1 − tanh² is exactly 0",
    ours="not followed: the exact one, `cross_entropy-softcap-saturated` among the golden cases",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, label = torch.tensor([[40.0, 0.0]], dtype=torch.float64), torch.tensor([1])
    _, gradient = value_and_gradient(lambda z: cross_entropy(2.0 * torch.tanh(z / 2.0), label), logits)
    ours = refloss.cross_entropy(logits, label, softcap=2.0).grads["logits"]
    # 1 − tanh² = 1/cosh², times the probability of a logit of 2 beside one of 0.
    exact = np.cosh(20.0) ** -2 / (1 + np.exp(-2.0))
    yield Answer("the derivative at z/c = 20", gradient[0, 0], 0.0, exact, ours[0, 0])
