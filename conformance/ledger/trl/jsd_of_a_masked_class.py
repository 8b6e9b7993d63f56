"""A JSD to a teacher that masks a class is NaN.

The term of a class without probability is 0·(−inf − …). Teachers' vocabularies are padded and masked with −inf, so
that one such class spoils every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry
from conformance.peer_losses import liger_jsd, trl_jsd

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="preference_trainers",
    case="a logit of −inf of the teacher, JSD",
    theirs="Liger, TRL: NaN",
    ours="finite",
    seen={"trl": "1.16.0", "liger-kernel": "0.8.5"},
)


def reproduce(library: str) -> Iterator[Answer]:
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    theirs = array({"trl": trl_jsd, "liger-kernel": liger_jsd}[library](student, teacher, beta=0.5))
    # Of (1, 0) and (1/2, 1/2), whose mixture is (3/4, 1/4).
    exact = (np.log(4 / 3) + (np.log(2 / 3) + np.log(2.0)) / 2) / 2
    yield Answer("loss", theirs, np.nan, exact, refloss.distillation(student, teacher, divergence="jsd").loss)
