"""Liger's LUSPO with a KL does not mask its losses, so that padding has gradients.

Losses are [B, T] there and [B, 1] without a KL; what is multiplied by a length and averaged are all elements. TRL
masks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance import peers
from conformance.call import array, value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="policy_trainers",
    case='LUSPO with a KL (`ratio="sequence"`, `aggregation="seq-mean-token-sum"`)',
    theirs="Liger: padding counts, and has gradients; TRL masks it",
    ours="masked",
    seen={"liger-kernel": "0.8.5"},
)


def reproduce() -> Iterator[Answer]:
    given = peers.batch()
    _, gradient = value_and_gradient(
        lambda *each: peers.liger_policy(peers.Batch(*each), loss_type="luspo", sequence=True), *given
    )
    kl = {"kl": "k3", "kl_coef": peers.BETA}
    _, ours = peers.refloss_policy(given, ratio="sequence", aggregation="seq-mean-token-sum", **kl)
    padding = array(given.mask) == 0
    yield Answer("gradients of padding", gradient[padding].any(), True, False, ours[padding].any())
