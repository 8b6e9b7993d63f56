"""Liger's KTO takes a negative KL as it is.

An estimate of a divergence from a batch may be below 0; TRL, and the paper, clamp it there. Liger leaves it to the
caller. It has no weights for desirable and undesirable answers either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import DESIRABLE, liger_kto

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="preference_trainers",
    case="KTO: a KL of −2",
    theirs="Liger takes it as it is",
    ours="0, as in TRL",
    seen={"liger-kernel": "0.8.5"},
)


def reproduce() -> Iterator[Answer]:
    zero = torch.zeros(6, dtype=torch.float64)
    theirs = array(liger_kto(zero, zero, -2.0, beta=0.5))
    # Three of six answers are desirable, 1 − σ(−z) and 1 − σ(z) with z = β·KL.
    ours = refloss.kto(zero, zero, DESIRABLE.numpy(), -2.0, beta=0.5).loss
    yield Answer("loss of the desirable", theirs - _rest(-1.0), _rest(1.0), 0.25, ours - 0.25, 1e-6)


def _rest(z: float) -> float:
    return 0.5 / (1 + np.exp(-z))
