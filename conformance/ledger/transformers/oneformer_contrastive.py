"""OneFormer's contrastive loss is the sum of both directions, where other models have their mean.

Whoever carries a temperature, a weight or a learning rate over from CLIP trains with twice the loss, and twice its
gradients.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.models.oneformer.modeling_oneformer import OneFormerLoss

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="contrastive",
    case="a sum over both directions (oneformer), not their mean",
    theirs="twice the loss of the other models",
    ours="`info_nce` is the mean",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    self, rows = SimpleNamespace(logit_scale=torch.zeros(())), torch.eye(2)[:, None]
    theirs = array(OneFormerLoss.loss_contrastive(self, rows, rows)["loss_contrastive"])
    exact = np.log1p(np.exp(-1.0))
    yield Answer("loss", theirs, 2 * exact, exact, refloss.info_nce(np.eye(2)).loss, tolerance=1e-6)
