"""NaN or an infinity at a token that does not count makes the balance of experts NaN.

Its probabilities are multiplied by a mask of 0. Tokens of padding come out of attention over nothing, which is where
NaN comes from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="routers",
    case="a token that does not count and holds NaN, inf, or −inf alone",
    theirs="the loss is NaN: 0·NaN",
    ours="not followed: it is not read",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    mask = torch.tensor([1, 0])
    for poison in (torch.nan, torch.inf, -torch.inf):
        logits = torch.tensor([[0.0, 0.0], [poison, poison]])
        theirs = array(load_balancing_loss_func((logits,), 2, 1, mask))
        yield Answer(f"beside {poison}", theirs, np.nan, 1.0, refloss.moe_load_balancing(logits, 1, mask=mask).loss)
