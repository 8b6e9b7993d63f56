"""Class weights of both signs that add up to 0 make gradients infinite, where weights of 0 make them NaN.

A weighted mean divides by the sum of the weights of its labels. Of a sum of 0 it is 0/0 in both cases: there is no
mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="signed weights that cancel to a normaliser of 0",
    theirs="loss and gradient ±inf, NaN at the label",
    ours="not followed: NaN, as for weights that are all 0",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.5, -3.0, 2.0]], dtype=torch.float64)
    labels, weight = torch.tensor([0, 1]), torch.tensor([-1.0, 1.0, 0.5], dtype=torch.float64)
    loss, gradient = value_and_gradient(lambda x: cross_entropy(x, labels, weight), logits)
    ours = refloss.cross_entropy(logits, labels, weight)
    yield Answer("loss", loss, torch.inf, torch.nan, ours.loss)
    yield Answer("a gradient beside the label", gradient[0, 1], -torch.inf, torch.nan, ours.grads["logits"][0, 1])
