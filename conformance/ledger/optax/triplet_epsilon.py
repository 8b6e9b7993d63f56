"""optax's triplet loss adds its ε under the root, so that equal vectors are a thousandth apart.

torch adds 1e-6 to each difference; here 1e-6 is added to the sum of squares, whose root is 1e-3. Distances that are
compared with a margin of a few hundredths are off by as much.
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
    case="triplets: ε, 1e-6",
    theirs="added to the sum of squares: two equal vectors are 1e-3 apart",
    ours="added to each difference, as torch",
    seen={"optax": "0.2.8"},
)


def reproduce() -> Iterator[Answer]:
    same, other = np.ones((1, 4), np.float32), np.full((1, 4), 1.25, np.float32)
    theirs = optax.losses.triplet_margin_loss(same, same, other)
    ours = refloss.triplet_margin(same, same, other, reduction="none").loss
    # Distances of 0 and 1/2; torch's ε moves them by 2e-6 and −1e-6 at most.
    recorded = 1e-3 - np.sqrt(0.25 + 1e-6) + 1.0
    yield Answer("loss", theirs, [recorded], [0.5], ours, tolerance=1e-5, our_tolerance=1e-5)
