"""A log-probability below −10 counts as −10 in verl's distillation from K classes.

log_prob_min_clamp has this default: a class that the student gives e^−12 has no gradient, whatever the teacher gives
it. What a student has to learn most is what it is not taught.
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
    topic="preference_trainers",
    case="K classes of which the student gives one e^−12",
    theirs="verl's default `log_prob_min_clamp` of −10: no gradient",
    ours="−p = −0.5",
    seen={"verl": "0.9.1"},
)


def reproduce() -> Iterator[Answer]:
    student = torch.tensor([[0.0, -12.0, -30.0]], dtype=torch.float64)
    given = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log(), torch.tensor([[0, 1]])
    _, gradient = value_and_gradient(lambda x: verl_topk(x, *given, least=-10.0), student)
    ours = refloss.topk_distillation(student, *given, reduction="none").grads["student_logits"]
    q = np.exp(-12.0) / (1 + np.exp(-12.0) + np.exp(-30.0))
    # q − p; without the second term it is half of what the softmax gives back.
    yield Answer("the gradient", gradient[0, 1], q / 2, q - 0.5, ours[0, 1], 1e-3, 1e-6)
