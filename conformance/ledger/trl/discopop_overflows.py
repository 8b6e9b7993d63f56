"""DiscoPOP's loss of a preference that is far on the wrong side is NaN in float32.

It blends log(1 + e^−x) and e^−x by a sigmoid, and e^−x overflows from x = −88 on, while its weight is 0. The loss is
−x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import liger_dpo, trl_dpo

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="preferences",
    case='"discopop" of x < −88 in float32',
    theirs="TRL, Liger: inf·0: NaN",
    ours="not followed: the loss is −x",
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5"},
)


def reproduce(library: str) -> Iterator[Answer]:
    given = torch.tensor([-200.0]), torch.zeros(1), torch.zeros(1), torch.zeros(1)
    theirs = array({"trl": trl_dpo, "liger-kernel": liger_dpo}[library](*given, beta=0.5, loss_type="discopop"))
    yield Answer("loss", theirs, np.nan, 100.0, refloss.preference_loss(*given, beta=0.5, kind="discopop").loss)
