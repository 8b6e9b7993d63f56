"""verl's forward KL of the K most probable classes has no gradient where it is negative.

Σ p·(log p − log q) of a part of two distributions is no divergence and may be below 0; clamped there, it trains
nothing, in 89 % of the steps of one run. Its gradient is right where the value looks wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch

import refloss
from conformance import peers
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import verl_topk

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="topk_distillation",
    case="Σ p·(log p − log q) of K classes below 0, as for p = (¼, ¼) and q = (½, ½)",
    theirs="verl's `forward_kl_topk` clamps it at 0: no gradient, of 89 % of steps in one run",
    ours="not followed: −0.35, and the gradient",
    seen={"verl": "0.9.1"},
    reports=("verl-project/verl#7856",),
)


def clamped(student: torch.Tensor, log_p: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """What verl's workers make of losses of tokens, which come out of the model with masses that are logged."""
    module, ones = peers.imported("verl.trainer.distillation.losses"), torch.ones(1, 1)
    outputs = {"distillation_losses": verl_topk(student, log_p, ids)[None], "student_mass": ones, "teacher_mass": ones}
    with mock.patch.object(module, "no_padding_2_padding", lambda values, _: values):
        loss: torch.Tensor = module.compute_forward_kl_topk(None, None, outputs, {"response_mask": ones})[0]
    return loss


def reproduce() -> Iterator[Answer]:
    student = torch.tensor([[0.0, 0.0, -100.0]], dtype=torch.float64)
    given = torch.tensor([[0.1, 0.3]], dtype=torch.float64).log(), torch.tensor([[0, 1]])
    loss, gradient = value_and_gradient(lambda x: clamped(x, *given), student)
    ours = refloss.topk_distillation(student, *given)
    exact = 0.1 * np.log(0.2) + 0.3 * np.log(0.6)
    yield Answer("loss", loss[0, 0], 0.0, exact, ours.loss)
    # Σp·q − p, with q = 1/2.
    yield Answer("gradient", gradient[0, :2], [0.0] * 2, [0.2 - 0.1, 0.2 - 0.3], ours.grads["student_logits"][0, :2])
