"""NaN in a token that does not count spoils the loss of a policy.

Losses of tokens are multiplied by a mask of 0, so that what stands in padding decides whether there is a loss. In TRL
and Liger the gradients are NaN too; in verl and OpenRLHF the clamp of log-ratios keeps them, but for OpenRLHF's GSPO.
verl's mean over tokens leaves such tokens out.
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
    case="NaN in a token that does not count",
    theirs=(
        "TRL, Liger: loss and gradients NaN; verl: the loss, where it is a mean over sequences; OpenRLHF: the "
        "loss, in GSPO gradients as well"
    ),
    ours="not followed: it never leaks",
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5", "verl": "0.9.1", "openrlhf": "0.11.2"},
)


# Of a preset: whether its gradients are NaN as well.
PRESETS: dict[str, dict[str, bool]] = {
    "trl": {"trl/dapo": True},
    "liger-kernel": {"liger/dapo": True},
    "verl": {"verl/vanilla/seq-mean-token-sum": False},
    "openrlhf": {"openrlhf/ppo": False, "openrlhf/gspo": True},
}


def reproduce(library: str) -> Iterator[Answer]:
    given = peers.batch()
    poisoned = given._replace(log_probs=torch.where(given.mask > 0, given.log_probs, torch.nan))
    for preset, spreads in PRESETS[library].items():
        (exact, _), (loss, gradient) = peers.policy_of(preset, given), peers.policy_of(preset, poisoned)
        ours, slopes = peers.ours_of(preset, poisoned)
        yield Answer(f"the loss of {preset}", loss, np.nan, exact, ours, our_tolerance=1e-6)
        if spreads:
            yield Answer(f"NaN in gradients of {preset}", np.isnan(gradient).any(), True, False, np.isnan(slopes).any())
