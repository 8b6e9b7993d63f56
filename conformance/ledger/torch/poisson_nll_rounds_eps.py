"""x + eps of poisson_nll_loss is rounded to the type of x.

With log_input=False and a rate of 1 in float32, the default eps of 1e-8 adds nothing. Where counts are large its
share of the loss is not small.
"""

from __future__ import annotations

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
    case="`poisson_nll`: x + `eps`",
    theirs="rounded to the type of x",
    ours="not followed: exact",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    rate, count = torch.ones(1), torch.tensor([1e8])
    theirs = array(functional.poisson_nll_loss(rate, count, log_input=False))
    exact = 1 - 1e8 * np.log1p(1e-8)
    ours = refloss.poisson_nll(rate, count, log_input=False).loss
    yield Answer("loss", theirs, 1.0, exact, ours, our_tolerance=1e-7)
