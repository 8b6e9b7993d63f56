"""Stirling's term of integer counts is a float32 number in a float64 loss.

The logarithm of an integer tensor has the default type. A loss of float64 inputs is right to seven digits.
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
    case="`poisson_nll`, `full`, of integer counts",
    theirs="their logarithms are float32 ones",
    ours="not followed: as exact as of floats",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    x, counts = torch.zeros(1, dtype=torch.float64), torch.tensor([7])
    theirs = array(functional.poisson_nll_loss(x, counts, full=True))
    exact = 1 + 7 * np.log(7.0) - 7 + np.log(2 * np.pi * 7) / 2
    # Which digits of float32 are wrong is a matter of the processor.
    right = [abs(each / exact - 1) < 1e-12 for each in (theirs, refloss.poisson_nll(x, counts, full=True).loss)]
    yield Answer("whether the loss is right to 1e-12", right[0], False, True, right[1])
