"""OpenRLHF's LogExpLoss of rewards is infinite where they are 89 apart.

log(1 + e^(r − c)) as it is written overflows in float32, where the loss is r − c. Its gradient is NaN: a reward model
that is far off, which a pair should pull back, is lost.
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
    topic="preferences",
    case="rewards that are 89 apart, in float32",
    theirs="OpenRLHF's log(1 + e^(r − c)) overflows",
    ours="not followed: r − c",
    seen={"openrlhf": "0.11.2"},
)


def reproduce() -> Iterator[Answer]:
    chosen, rejected = torch.tensor([-60.0]), torch.tensor([40.0])
    theirs = array(peers.openrlhf("loss").LogExpLoss()(chosen, rejected))
    yield Answer("loss", theirs, np.inf, 100.0, refloss.preference_loss(chosen, rejected, beta=1.0).loss)
