"""GSPO in verl gives each token the gradient of its own advantage.

It is written of tokens, sg(s)·p/sg(p), which is the gradient of the sequence's ratio where all advantages of a
sequence are one number. With advantages of tokens it is that of another loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from conformance import peers
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="policy_trainers",
    case="GSPO with advantages of tokens",
    theirs="verl: the gradient of token t has A_t",
    ours="that of the formula: the mean of them",
    seen={"verl": "0.9.1"},
)


def reproduce() -> Iterator[Answer]:
    same, mask = torch.full((1, 2), -1.0, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    given = peers.Batch(same, same, same, torch.tensor([[1.0, 3.0]], dtype=torch.float64), mask)
    (_, theirs), (_, ours) = peers.policy_of("verl/gspo", given), peers.ours_of("verl/gspo", given)
    yield Answer("the gradient", theirs, [[-0.5, -1.5]], [[-1.0, -1.0]], ours, tolerance=1e-6)
