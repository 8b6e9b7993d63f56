"""kl_div with its default reduction divides by all elements: the divergence of two distributions over C classes by C.

A mean over rows, the mathematical divergence, is called "batchmean". torch warns of it, and says since years that the
default will change.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="classification",
    case='`kl_div`, `"mean"`',
    theirs='divides by all elements, with a warning; the divergence is `"batchmean"`',
    ours="followed, without the warning",
    seen={"torch": "2.13.0"},
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    log_q = torch.full((1, 4), 0.25, dtype=torch.float64).log()
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    with warnings.catch_warnings(action="ignore"):
        theirs = array(functional.kl_div(log_q, p))
    yield Answer("loss", theirs, np.log(4.0) / 4, np.log(4.0), refloss.kl_div(log_q, p).loss)
