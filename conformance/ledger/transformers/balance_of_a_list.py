"""load_balancing_loss_func returns 0 for logits in a list.

Anything but a tuple has no loss, without a word: experts are not balanced, and training goes on. A list comes easily,
from whoever collects the logits of layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="routers",
    case="logits of layers in a list, or one tensor",
    theirs="the loss is 0: only a tuple has one",
    ours="not followed: as a tuple",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    layers = [torch.eye(3), torch.eye(3)]
    theirs = float(load_balancing_loss_func(layers, 3, 1))
    yield Answer("loss", theirs, 0.0, 1.0, refloss.moe_load_balancing(layers, 1).loss)
