"""A k3 above 10 is 10 in verl, without a gradient.

The estimate of the KL of a token is clamped after the exponential, from a log-ratio of 2.6 on. What has moved
farthest from the reference is what no longer pulls back. OpenRLHF clamps all its estimates so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from conformance import peers
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="policy_trainers",
    case="k3 at ref − log p = 3",
    theirs="verl, OpenRLHF clamp it to ±10: 10, gradient 0",
    ours="not followed: e³ − 4 = 16.1, gradient 1 − e³",
    seen={"verl": "0.9.1"},
)


def reproduce() -> Iterator[Answer]:
    given = peers.one_token(0.0, 0.0)._replace(ref_log_probs=torch.tensor([[-27.0], [-30.0]], dtype=torch.float64))
    loss, gradient = peers.policy_of("verl/vanilla", given, kl=True, kl_loss_coef=1.0)
    ours, slopes = peers.ours_of("verl/vanilla", given, kl="k3", kl_coef=1.0)
    # One of two tokens.
    yield Answer("loss", loss, 5.0, (math.e**3 - 4) / 2, ours)
    yield Answer("gradient", gradient[0, 0], 0.0, (1 - math.e**3) / 2, slopes[0, 0])
