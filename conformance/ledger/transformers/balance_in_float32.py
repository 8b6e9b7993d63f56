"""Counts and probabilities of a router are added up in float32, whatever its logits are.

Of float64 logits the loss is a float32 number, right to seven digits for whoever checks a model in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="routers",
    case="float64 logits",
    theirs="counts, probabilities and the loss are float32",
    ours="not followed: inputs are exact",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    # Of one token the loss is twice the larger probability.
    logits = torch.tensor([[2.0**-30, 0.0]], dtype=torch.float64)
    theirs, ours = array(load_balancing_loss_func((logits,), 2, 1)), refloss.moe_load_balancing(logits, 1).loss
    yield Answer("loss less 1", theirs - 1, 0.0, 2.0**-31, ours - 1, our_tolerance=1e-6)
