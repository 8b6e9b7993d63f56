"""NaN beyond a sample's frames makes its TDT gradients NaN, within them too.

The loss does not see them. Logits of padded frames come out of a model that saw padding, and may be anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry
from conformance.ledger.transformers import tdt

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="transducers",
    case="NaN in rows beyond a sample's length",
    theirs="TDT: the loss is finite, and the sample's gradients are NaN, within the length too",
    ours="not followed: they are what they are without; 0 beyond",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    given = tdt(frames=3, labels=[1], durations=[0, 1], reduction="sum") | {"logit_lengths": torch.tensor([2])}
    clean = given.pop("token_logits")
    padded = torch.where(torch.arange(3)[:, None, None] < 2, clean, torch.nan)
    exact, theirs = (
        value_and_gradient(lambda x: LOSS_MAPPING["ParakeetForTDT"](token_logits=x, **given), logits)[1]
        for logits in (clean, padded)
    )
    ours = refloss.LOSS_MAPPING["ParakeetForTDT"](token_logits=padded, **given).grads["token_logits"]
    assert not ours[0, 2].any()
    yield Answer(
        "the gradient of frames that count",
        theirs[0, :2],
        exact[0, :2] + np.nan,
        exact[0, :2],
        ours[0, :2],
        our_tolerance=1e-6,
    )
