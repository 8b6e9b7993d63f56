"""At balance the loss of a router is k, where Switch Transformers, Megatron and DeepSeek have 1.

Each token counts for every expert that it is sent to. A coefficient that is carried over from a paper is k times too
large.
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
    case="value at balance",
    theirs="k",
    ours="followed; `normalise_top_k=True` for 1",
    seen={"transformers": "5.24.0"},
    reports=("huggingface/transformers#43688", "huggingface/transformers#43775"),
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    theirs, ours = array(load_balancing_loss_func((logits,), 4, 2)), refloss.moe_load_balancing(logits, 2).loss
    yield Answer("loss", theirs, 2.0, 1.0, ours, tolerance=1e-6, our_tolerance=1e-6)
    assert refloss.moe_load_balancing(logits, 2, normalise_top_k=True).loss == 1.0
