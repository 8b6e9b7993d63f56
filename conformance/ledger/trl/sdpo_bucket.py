"""What is outside of the K most probable classes counts as 1e-7 at least in TRL's SDPO.

A student that is sure of classes that its teacher doubts has less than that outside, and learns nothing of it: the
gradient there is 0 where the exact one is the teacher's whole share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import refloss
from conformance.call import array, value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import named, trl_topk

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="preference_trainers",
    case="the bucket of a student that is sure, x = (0, −40, −41, −42) and K = 3",
    theirs="TRL's SDPO: 1e-7 at least, so that the class outside has no gradient",
    ours="the exact one, −R",
    seen={"trl": "1.16.0"},
)


def reproduce() -> Iterator[Answer]:
    student = torch.tensor([[0.0, -40.0, -41.0, -42.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, -1.0, -2.0, 0.0]], dtype=torch.float64)
    _, gradient = value_and_gradient(lambda x: trl_topk(x, teacher, tail=True), student)
    ours = refloss.topk_distillation(student, *named(student, teacher), tail="bucket", reduction="none")
    outside = array(torch.softmax(teacher, -1))[0, 3]
    theirs = round(float(gradient[0, 3]), 12)
    yield Answer("the gradient outside", theirs, 0.0, -outside, ours.grads["student_logits"][0, 3], our_tolerance=1e-9)
