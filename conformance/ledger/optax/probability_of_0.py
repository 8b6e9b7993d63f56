"""softmax_cross_entropy of a class of probability 0 and logit −inf is NaN.

As torch's. safe_softmax_cross_entropy leaves such a class out, and is another function that one has to know of.
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
    case="a class of probability 0 and logit −inf",
    theirs="`softmax_cross_entropy`: NaN, as torch; `safe_softmax_cross_entropy`: left out",
    ours="NaN, as torch",
    seen={"optax": "0.2.8"},
    reports=("google-deepmind/optax#896",),
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    logits, target = np.array([[0.0, 0.0, -np.inf]], np.float32), np.array([[0.25, 0.75, 0.0]], np.float32)
    theirs = optax.losses.softmax_cross_entropy(logits, target)
    ours = refloss.cross_entropy(logits, target, reduction="none").loss
    yield Answer("loss", theirs, [np.nan], [np.log(2.0)], ours)
    safe = optax.losses.safe_softmax_cross_entropy(logits, target)
    np.testing.assert_allclose(safe, [np.log(2.0)], rtol=1e-6)
