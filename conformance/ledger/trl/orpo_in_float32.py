"""TRL's odds ratio rounds log-probabilities to float32, where a sure answer has none.

−1e-46 is 0 there, and 1 − e^0 has a logarithm of −inf: loss 0, and a gradient of NaN. The exact one is finite at 0
itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import TRL_ORPO

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="preference_trainers",
    case="ORPO: a chosen answer of log-probability −1e-46",
    theirs="TRL: rounded to float32, so 0: loss 0, gradient NaN",
    ours="−1 − β/(e − 1) beside a rejected one of −1",
    seen={"trl": "1.16.0"},
)


def reproduce() -> Iterator[Answer]:
    chosen, rejected = torch.tensor([-1e-46], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    # The odds ratio's part alone, which TRL takes off the loss of the chosen answer.
    _, gradient = value_and_gradient(lambda w: TRL_ORPO(w, rejected, beta=0.1), chosen)
    ours = refloss.preference_loss(chosen, rejected, kind="orpo").grads["chosen_log_probs"]
    odds = 0.1 / (math.e - 1)
    yield Answer("the gradient of the odds ratio", gradient, [np.nan], [odds], -1 - ours)
