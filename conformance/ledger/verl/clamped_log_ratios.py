"""Log-ratios beyond ±20 have no gradient in verl and OpenRLHF.

They are clamped before the exponential, and a clamp has no slope outside. A token that has become a billion times
less likely, and is good, is not brought back.
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
    case="a log-ratio of −21, A = 1",
    theirs="verl, OpenRLHF clamp it to ±20: gradient 0",
    ours="not followed: −e^−21 = −7.6e-10",
    seen={"verl": "0.9.1", "openrlhf": "0.11.2"},
)


PRESETS = {"verl": ("verl/vanilla", "verl/sapo"), "openrlhf": ("openrlhf/ppo",)}


def reproduce(library: str) -> Iterator[Answer]:
    given = peers.one_token(-21.0, 1.0)
    for preset in PRESETS[library]:
        (_, theirs), (_, ours) = peers.policy_of(preset, given), peers.ours_of(preset, given)
        # Half of a mean over two tokens; of SAPO, 4·σ'(r − 1)·r at a ratio of 0.
        factor = np.exp(-1.0) * 4 / (1 + np.exp(-1.0)) ** 2 if "sapo" in preset else 1.0
        yield Answer(preset, theirs[0, 0], 0.0, -factor * np.exp(-21.0) / 2, ours[0, 0], our_tolerance=1e-8)
