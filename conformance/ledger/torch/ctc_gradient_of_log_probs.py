"""The gradient that ctc_loss hands to log-probabilities is not its derivative.

It is e^lp − γ, where γ are the probabilities of emitting a class in a frame; the derivative is −γ. Behind a
log_softmax both give the same gradient of logits. Anything else between a model and the loss (smoothing, scaling, a
mask) is differentiated wrongly without a word.
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
    topic="alignments",
    case="`ctc_loss`: gradient of `log_probs`",
    theirs="e^lp − γ, that of the logits in front of a `log_softmax`; the derivative is −γ",
    ours="followed",
    seen={"torch": "2.13.0"},
    reports=("pytorch/pytorch#52241", "pytorch/pytorch#181534"),
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    log_probs = torch.tensor([[[0.25, 0.75]]], dtype=torch.float64).log()
    given = torch.tensor([[1]]), torch.tensor([1]), torch.tensor([1])
    _, gradient = value_and_gradient(lambda lp: functional.ctc_loss(lp, *given, reduction="sum"), log_probs)
    ours = refloss.ctc(log_probs, *given, reduction="sum").grads["log_probs"]
    # One frame and one label: the loss is −log p of the label.
    yield Answer("the gradient of a frame", gradient[0, 0], [0.25, -0.25], [0.0, -1.0], ours[0, 0])
