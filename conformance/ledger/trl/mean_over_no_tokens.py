"""A mean over no tokens is 0 in TRL and Liger.

They divide by 1 where nothing counts. A batch without a token looks like one whose policy is at its optimum; torch's
mean of nothing, verl's and OpenRLHF's is NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from conformance import peers
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="policy_trainers",
    case="no token counts, a mean over tokens",
    theirs="TRL, Liger: 0; verl, OpenRLHF: NaN",
    ours="NaN, gradients 0",
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5"},
)


def reproduce(library: str) -> Iterator[Answer]:
    preset = {"trl": "trl/dapo", "liger-kernel": "liger/dapo"}[library]
    given = peers.batch()._replace(mask=torch.zeros(5, 7, dtype=torch.float64))
    (theirs, _), (ours, slopes) = peers.policy_of(preset, given), peers.ours_of(preset, given)
    assert not slopes.any()
    yield Answer("loss", theirs, 0.0, np.nan, ours)
