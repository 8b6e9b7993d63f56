"""gaussian_nll_loss refuses a variance without axes.

A number for var is taken, and a tensor of one element that means the same is an error: "var is of incorrect size".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

import refloss
from conformance.ledger.entry import Answer, Entry, raised

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="classification",
    case="`gaussian_nll`: a `var` without axes beside inputs of several",
    theirs="ValueError",
    ours="not followed: the variance of all elements",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    x, target, var = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor(4.0)
    theirs = raised(functional.gaussian_nll_loss, x, target, var)
    exact = (np.log(4.0) + 1 / 4) / 2
    yield Answer("loss", theirs, "ValueError", exact, refloss.gaussian_nll(x, target, var).loss)
