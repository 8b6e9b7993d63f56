"""Liger pads the logits of a student with a smaller vocabulary with zeros.

A logit of 0 is a class of e⁰, not one without probability. The student is taught by a distribution that it does not
have: here it is its teacher, and the loss 0, where half of the teacher's mass is on a class that the student lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance import peers
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="distillation",
    case="a student with fewer classes than its teacher",
    theirs="Liger pads the student's logits with 0, classes that have e⁰",
    ours="−inf is the caller's padding: no probability",
    seen={"liger-kernel": "0.8.5"},
)


def reproduce() -> Iterator[Answer]:
    function = peers.imported("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDLoss
    loss = function(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
    # One class, and two that are equal.
    hidden, label = torch.zeros(1, 1), torch.tensor([0])
    theirs = array(loss(hidden, torch.zeros(1, 1), hidden, torch.zeros(2, 1), label))
    exact = (np.log(4 / 3) + (np.log(2 / 3) + np.log(2.0)) / 2) / 2
    ours = refloss.distillation([[0.0, -np.inf]], [[0.0, 0.0]], divergence="jsd").loss
    yield Answer("loss", theirs, 0.0, exact, ours)
