"""softmax_cross_entropy_with_integer_labels loses digits of logits that are far from 0.

It is the log-sum-exp less the label's logit, to save a pass over the row: two numbers near 1e4 whose difference is a
multiple of 2^−10. log_softmax and a gather lose nothing. Its source says so in a comment.
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
    case="`softmax_cross_entropy_with_integer_labels` of logits near 1e4",
    theirs="log-sum-exp less the label's logit: a multiple of 2^−10",
    ours="not followed: nothing cancels",
    seen={"optax": "0.2.8"},
)


def reproduce() -> Iterator[Answer]:
    logits, label = np.array([[10000.0, 10000.5]], np.float32), np.array([0])
    theirs = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
    exact = np.log1p(np.exp(0.5))
    recorded = np.round(exact * 2**10) / 2**10
    yield Answer("loss", theirs, [recorded], [exact], refloss.cross_entropy(logits, label, reduction="none").loss)
