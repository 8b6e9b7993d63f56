"""kl_div of logarithms, log_target=True, is NaN where the teacher has masked a class.

0·log 0 is 0 in a divergence, and e^−inf·(−inf − log q) is NaN. Teachers with a smaller vocabulary, padded with −inf,
spoil the loss; of probabilities instead of logarithms the loss is right, and the gradient of the teacher's logits
NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

import refloss
from conformance.call import array, value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="distillation",
    case="`kl_div(log_target=True)` where the teacher has a class of −inf: [0, 0, 0, 0] against [0, 0, −inf, −inf]",
    theirs="NaN; of probabilities the loss is right and the teacher's gradient NaN",
    ours="not followed: log 2, gradients finite",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    student = torch.zeros(1, 4, dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    log_q = torch.log_softmax(student, -1)
    ours = refloss.distillation(student, teacher)
    logarithms = array(functional.kl_div(log_q, torch.log_softmax(teacher, -1), reduction="batchmean", log_target=True))
    yield Answer("loss of logarithms", logarithms, np.nan, np.log(2.0), ours.loss)
    _, gradient = value_and_gradient(
        lambda t: functional.kl_div(log_q, torch.softmax(t, -1), reduction="batchmean"), teacher
    )
    slopes = ours.grads["teacher_logits"]
    yield Answer("gradient of the teacher", np.isnan(gradient).any(), True, False, np.isnan(slopes).any())
