"""TRL's and Liger's DPO take label_smoothing and do not read it.

With loss_type "sigmoid" it changes nothing, without a word. cDPO's smoothing is in torchtune, in OpenRLHF and in
their own CPO.
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
    topic="preference_trainers",
    case='`label_smoothing` with "sigmoid"',
    theirs="TRL, Liger do not read it",
    ours="cDPO, as torchtune and OpenRLHF have it",
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5"},
)


def reproduce(library: str) -> Iterator[Answer]:
    chosen, zero = torch.tensor([2.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    given = chosen, zero, zero, zero
    theirs = array({"trl": trl_dpo, "liger-kernel": liger_dpo}[library](*given, beta=0.5, label_smoothing=0.1))
    ours = refloss.preference_loss(*given, beta=0.5, label_smoothing=0.1).loss
    right, wrong = np.log1p(np.exp(-1.0)), np.log1p(np.exp(1.0))
    yield Answer("loss", theirs, right, 0.9 * right + 0.1 * wrong, ours)
