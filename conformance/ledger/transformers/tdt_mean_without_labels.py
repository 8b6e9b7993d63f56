"""A sample without labels makes the mean of transducers' losses infinite.

Each loss is divided by its number of labels, which nothing keeps from being 0, as torch's CTC does. One silent
recording makes the loss of its batch infinite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.call import array
from conformance.ledger.entry import Answer, Entry
from conformance.ledger.transformers import tdt

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="transducers",
    case='`"mean"` with a sample without labels; `"mean_volume"` where no sample has labels',
    theirs="its loss is divided by 0: inf",
    ours="not followed: by 1, as `torch.nn.functional.ctc_loss` does",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    # One frame, a blank of two classes that takes it, and one duration.
    for reduction in ("mean", "mean_volume"):
        given = tdt(frames=1, labels=[], durations=[1], reduction=reduction)
        theirs = array(LOSS_MAPPING["ParakeetForTDT"](**given))
        ours = refloss.LOSS_MAPPING["ParakeetForTDT"](**given).loss
        yield Answer(reduction, theirs, np.inf, np.log(2.0), ours)
