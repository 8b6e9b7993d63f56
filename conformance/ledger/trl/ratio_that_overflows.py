"""A ratio that overflows has a gradient of NaN where the clip holds its loss.

Log-ratios are not clamped: beyond 88.7 the ratio is infinite in float32. Where the advantage is positive the clipped
term is taken, and the other's 0 is multiplied by infinity in the backward pass.
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
    case="a log-ratio of 100 in float32, A = 1",
    theirs="TRL, Liger: the clip holds the loss, and the gradient is 0·inf = NaN",
    ours="not followed: 0",
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5"},
)


def reproduce(library: str) -> Iterator[Answer]:
    preset = {"trl": "trl/dapo", "liger-kernel": "liger/dapo"}[library]
    given = peers.one_token(100.0, 1.0, dtype=torch.float32)
    (loss, gradient), (value, ours) = peers.policy_of(preset, given), peers.ours_of(preset, given)
    np.testing.assert_allclose([loss, value], [-0.6, -0.6], rtol=1e-6)
    yield Answer("the gradient", gradient[0, 0], np.nan, 0.0, ours[0, 0])
