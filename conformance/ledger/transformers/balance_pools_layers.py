"""Layers whose routers are unbalanced in opposite ways look balanced.

Counts and probabilities of all layers are pooled before they are multiplied. Two layers that each send all tokens to
one half of their experts, not the same half, have the least loss that there is.
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
    case="layers",
    theirs="pooled before counts and probabilities are multiplied: opposite favourites cancel",
    ours="followed; `pool_layers=False` for layers one by one",
    seen={"transformers": "5.24.0"},
    reports=("huggingface/transformers#31464",),
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    first = torch.tensor([[4.0, 4.0, -4.0, -4.0]]).repeat(6, 1)
    layers = (first, first.flip(-1))
    exact = 4 / (1 + np.exp(-8.0))
    theirs, ours = array(load_balancing_loss_func(layers, 4, 2)), refloss.moe_load_balancing(list(layers), 2).loss
    yield Answer("loss", theirs, 2.0, exact, ours, tolerance=1e-6, our_tolerance=1e-6)
    apart = refloss.moe_load_balancing(list(layers), 2, pool_layers=False).loss
    np.testing.assert_allclose(apart, exact, rtol=1e-12)
