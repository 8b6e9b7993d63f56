"""The variance of gaussian_nll_loss has a gradient where it is clamped.

Variances below eps count as eps, and the clamp is not differentiated: the gradient is that of eps, as large as 1/eps.
The function is constant there. It is meant: a variance that has become too small is pushed back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="classification",
    case="`gaussian_nll`: a variance below `eps`",
    theirs="has the derivative of `eps`: the clamp is not differentiated",
    ours="followed",
    seen={"torch": "2.13.0"},
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    zero = torch.zeros(1, dtype=torch.float64)
    _, gradient = value_and_gradient(lambda v: functional.gaussian_nll_loss(zero, zero, v, eps=1e-3), zero)
    ours = refloss.gaussian_nll(zero, zero, zero, eps=1e-3).grads["var"]
    yield Answer("the derivative in the variance", gradient, [500.0], [0.0], ours)
