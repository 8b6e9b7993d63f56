"""Where no token counts, the gradients of a router's balance are NaN.

0/0 is the mean of nothing, and NaN; its gradient is 0, as cross_entropy's is. A shard of padding alone spoils the
router.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="routers",
    case="no token counts",
    theirs="loss NaN, gradient NaN",
    ours="NaN, 0",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, mask = torch.zeros(3, 2), torch.zeros(3)
    _, gradient = value_and_gradient(lambda x: load_balancing_loss_func((x,), 2, 1, mask), logits)
    ours = refloss.moe_load_balancing(logits, 1, mask=mask).grads["router_logits"]
    yield Answer("gradient", gradient, np.full((3, 2), np.nan), np.zeros((3, 2)), ours)
