"""A binary cross-entropy of float64 logits and float32 targets is computed in float32.

The result's type is that of the targets, whatever the logits are, so that gradients that somebody checks in float64
are right to seven digits. Targets come as float32 from most data loaders.
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
    case="`bce_with_logits` of float64 logits and float32 targets",
    theirs="computed and returned in float32",
    ours="not followed: inputs are exact, the loss is a float64",
    seen={"torch": "2.13.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, target = torch.tensor([2.0**-30], dtype=torch.float64), torch.ones(1)
    theirs = array(functional.binary_cross_entropy_with_logits(logits, target))
    exact = np.log1p(np.exp(-(2.0**-30)))
    recorded = float(np.float32(np.log(2.0)))
    yield Answer("loss", theirs, recorded, exact, refloss.bce_with_logits(logits, target).loss)
