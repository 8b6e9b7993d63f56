"""verl's distillation from K classes takes a teacher's log-probability of −30 for one of −10.

log_prob_min_clamp is for the student, whose logarithm could be infinite, and raises the teacher as well: a class that
it finds impossible counts with e^−10, and the student is pulled there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import verl_topk

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="topk_distillation",
    case="log-probabilities below `log_prob_min_clamp`",
    theirs="verl: raised to it, so that a class of e^−30 counts as e^−10",
    ours="not followed: they are what they are",
    seen={"verl": "0.9.1"},
)


def reproduce() -> Iterator[Answer]:
    student = torch.tensor([[0.0, -5.0, -100.0]], dtype=torch.float64)
    log_p, ids = torch.tensor([[-1e-13, -30.0]], dtype=torch.float64), torch.tensor([[0, 1]])
    _, gradient = value_and_gradient(lambda x: verl_topk(x, log_p, ids, least=-10.0), student)
    ours = refloss.topk_distillation(student, log_p, ids, reduction="none").grads["student_logits"]
    q = 1 / (1 + np.exp(5.0))
    # Σp·q − p of the second class.
    recorded, exact = ((1 + p) * q - p for p in (np.exp(-10.0), np.exp(-30.0)))
    yield Answer("the gradient of a class", gradient[0, 1], recorded, exact, ours[0, 1], 1e-4, 1e-12)
