"""optax's CTC of labels that do not fit into their frames is 1e5, where it is infinite.

Impossible is written as a logarithm of −1e5. A sample that cannot be learnt weighs like a hundred thousand others in
a mean, and has a gradient.
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
    case="CTC: three labels in two frames",
    theirs="1e5 for what is infinite",
    ours="inf, as torch",
    seen={"optax": "0.2.8"},
)


def reproduce() -> Iterator[Answer]:
    logits, labels, frames = np.zeros((1, 2, 5), np.float32), np.array([[1, 2, 3]]), np.array([2])
    theirs = optax.losses.ctc_loss(logits, np.zeros((1, 2)), labels, np.zeros((1, 3)))
    ours = refloss.ctc_of_logits(logits, labels, frames, 0, reduction="none").loss
    yield Answer("loss", theirs, [1e5], [np.inf], ours, tolerance=1e-3)
