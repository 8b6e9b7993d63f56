"""CISPO with the default epsilon_high cuts every gradient to a fifth.

epsilon_high is the largest ratio here, and is added to 1 in the paper and in verl. Left at its default of 0.2, ratios
of 1, on policy, are cut to 0.2. The documentation asks for 5.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformance import peers
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="policy_trainers",
    case="CISPO with the default `epsilon_high`, ratios of 1",
    theirs="TRL, Liger: 0.2 is the largest ratio, so that each gradient is a fifth",
    ours="`clip_high` is what is added to 1; `trl/cispo` has the 5.0 that their documentation asks for",
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5"},
)


def reproduce(library: str) -> Iterator[Answer]:
    preset = {"trl": "trl/cispo", "liger-kernel": "liger/cispo"}[library]
    given = peers.batch()
    given = given._replace(old_log_probs=given.log_probs)
    _, theirs = peers.policy_of(preset, given, epsilon_high=0.2)
    _, ours = peers.ours_of(preset, given)
    exact = array(-given.advantages[:, None] * given.mask / given.mask.sum())
    yield Answer("the gradient", theirs, 0.2 * exact, exact, ours)
