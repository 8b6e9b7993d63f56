"""Of a target whose last label is the blank, ctc_loss forgets alignments in its gradient.

Those that end in the blank behind that label are in the loss, and not in γ of the last frame: gradients of a frame do
not add up to 0. Labels that are padded with the blank end so.
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
    topic="alignments",
    case="`ctc_loss`: a target whose last label is blank",
    theirs="the last frame's γ of blank lacks the alignments that end in the blank behind that label",
    ours="not followed: γ of all of them; the loss is the same",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    log_probs = torch.full((2, 1, 2), -np.log(2.0), dtype=torch.float64)
    given = torch.tensor([[0]]), torch.tensor([2]), torch.tensor([1])
    loss, gradient = value_and_gradient(lambda lp: functional.ctc_loss(lp, *given, reduction="sum"), log_probs)
    ours = refloss.ctc(log_probs, *given, reduction="sum")
    np.testing.assert_allclose(ours.loss, loss, rtol=1e-15)
    # Of three alignments, one ends in the blank behind the label; each emits blank in the last frame.
    last = ours.grads["log_probs"][1, 0, 0]
    yield Answer("the last frame's blank", gradient[1, 0, 0], 1 / 2 - 2 / 3, 1 / 2 - 1, last)
