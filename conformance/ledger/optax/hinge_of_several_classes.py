"""multiclass_hinge_loss takes the largest violation, where torch's multi_margin_loss takes the sum of all.

Both are called the multiclass hinge; Crammer and Singer's is the former, Weston and Watkins's the latter. Of two
classes they are one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import optax

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="optax",
    case="hinge of more than two classes",
    theirs="the largest violation",
    ours="`multi_margin`: the sum of all, as torch",
    seen={"optax": "0.2.8"},
)


def reproduce() -> Iterator[Answer]:
    logits, label = np.array([[0.0, 0.5, 0.25]], np.float32), np.array([0])
    theirs = optax.losses.multiclass_hinge_loss(logits, label)
    ours = 3 * refloss.multi_margin(logits, label, reduction="none").loss  # divided by the number of classes
    yield Answer("loss", theirs, [1.5], [1.5 + 1.25], ours)
