"""The temperatures of SAPO are float32 numbers in a float64 loss.

torch.where of two Python numbers has the default type: 1.05 is 1.0499999523, and the loss right to seven digits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conformance import peers
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="policy_trainers",
    case="τ of SAPO, 1.05",
    theirs="TRL: rounded to float32",
    ours="not followed",
    seen={"trl": "1.16.0"},
)


def reproduce() -> Iterator[Answer]:
    # Of a token whose ratio is 1 the loss is (4/τ)·σ(0), and one of two sequences has it.
    given = peers.one_token(0.0, -1.0)
    (theirs, _), (ours, _) = peers.policy_of("trl/sapo", given), peers.ours_of("trl/sapo", given)
    yield Answer("loss", theirs, 1 / float(np.float32(1.05)), 1 / 1.05, ours)
