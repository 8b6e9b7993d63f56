"""eps of gaussian_nll_loss is rounded to the type of the variance.

One that float32 does not hold is 0 there, and protects from nothing: a variance of 0 gives NaN, which eps is there to
prevent.
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
    case="`gaussian_nll`: `eps`",
    theirs="rounded to the type of `var`",
    ours="not followed: a float64",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    zero = torch.zeros(1)
    theirs = array(functional.gaussian_nll_loss(zero, zero, zero, eps=1e-50))
    yield Answer("loss", theirs, np.nan, np.log(1e-50) / 2, refloss.gaussian_nll(zero, zero, zero, eps=1e-50).loss)
