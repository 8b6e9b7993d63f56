"""log_loss of a label that was given no probability is 36, where it is infinite.

Probabilities are clipped to the machine's epsilon, of float64 here and of float32 where they are float32: 16. A model
that calls what happened impossible is told from none that gave it 1e-16, and its score depends on the type of its
predictions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import log_loss

import refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="cross_entropy",
    case="scikit-learn's `log_loss` of a label of probability 0",
    theirs="clipped to the machine's epsilon: 36.04 in float64, 15.94 in float32",
    ours="not followed: `bce` is 100, as torch; `nll` of log 0 is inf",
    seen={"scikit-learn": "1.9.1"},
)


def reproduce() -> Iterator[Answer]:
    for dtype in (np.float64, np.float32):
        p = np.array([[1.0, 0.0]], dtype)
        theirs = log_loss([1], p, labels=[0, 1])
        with np.errstate(divide="ignore"):
            ours = refloss.nll(np.log(p), [1]).loss
        yield Answer(f"loss in {dtype.__name__}", theirs, -np.log(np.finfo(dtype).eps), np.inf, ours, tolerance=1e-6)
