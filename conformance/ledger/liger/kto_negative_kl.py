"""Liger's KTO takes a negative KL as it is.

An estimate of a divergence from a batch may be below 0; TRL, and the paper, clamp it there. Liger leaves it to the
caller. It has no weights for desirable and undesirable answers either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import value_and_gradient
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
    _, theirs = value_and_gradient(lambda x: liger_kto(x, zero, -2.0, beta=0.5), zero)
    ours = refloss.kto(zero, zero, DESIRABLE.numpy(), -2.0, beta=0.5).grads["log_probs"]
    # Of a mean over six of 1 − σ(±β·(ρ − z)): β·σ′, 1/4 at 0.
    recorded, exact = (-0.5 / 6 / (2 + np.exp(z) + np.exp(-z)) for z in (1.0, 0.0))
    first = DESIRABLE.numpy()
    yield Answer("gradients of the desirable", theirs[first], [recorded] * 3, [exact] * 3, ours[first], tolerance=1e-6)
