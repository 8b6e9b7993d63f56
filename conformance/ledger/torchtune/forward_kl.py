"""torchtune's ForwardKLLoss is a cross-entropy.

−Σ t·log s lacks the teacher's entropy: it is above 0 for a student that is its teacher, and not comparable with other
libraries' forward KL, nor with its own reverse KL. The student's gradient is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import torchtune_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="distillation",
    case="torchtune's ForwardKLLoss",
    theirs="−Σ t·log s: larger by the teacher's entropy; the student's gradient is the same",
    ours="not followed: a divergence is 0 for equal rows",
    seen={"torchtune": "0.6.1"},
)


def reproduce() -> Iterator[Answer]:
    rows = torch.zeros(1, 2, dtype=torch.float64)
    loss, gradient = value_and_gradient(lambda x: torchtune_loss("ForwardKLLoss")(x, rows), rows)
    ours = refloss.distillation(rows, rows)
    yield Answer("the loss of equal rows", loss, np.log(2.0), 0.0, ours.loss, tolerance=1e-6)
    np.testing.assert_array_equal(gradient, ours.grads["student_logits"])
