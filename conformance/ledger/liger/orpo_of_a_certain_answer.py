"""ORPO of a certain answer is NaN in Liger.

log(1 − e^x) is written as log1p(−e^x), and e^x is 1 from x = −1e-16 on, in float32 from −6e-8: log 0. Answers that a
model knows by heart stop training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import LIGER_ORPO

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="preference_trainers",
    case="ORPO: a chosen answer of log-probability −1e-18",
    theirs="Liger: log(1 − e^x) is log 0, the gradient NaN",
    ours="log(1 − e^x) = −41.4, gradients finite",
    seen={"liger-kernel": "0.8.5"},
)


def reproduce() -> Iterator[Answer]:
    chosen, rejected = torch.tensor([-1e-18], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    # Liger adds −w, the loss of the chosen answer, elsewhere.
    _, gradient = value_and_gradient(lambda w: LIGER_ORPO(w, rejected), chosen)
    ours = refloss.preference_loss(chosen, rejected, kind="orpo").grads["chosen_log_probs"]
    odds = 0.1 / (math.e - 1)
    # Of −β·log σ(h): β·(1 − σ)·(1 + e^w/(1 − e^w)), where 1 − σ is e^−h = (1 − e^w)·e^r/(1 − e^r) as h grows.
    yield Answer("the gradient", gradient, [np.nan], [-odds], ours + 1)
