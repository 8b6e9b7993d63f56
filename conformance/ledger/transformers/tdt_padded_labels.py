"""Labels that are padded with −100, as data collators pad them, are an error.

They are looked up before lengths are looked at. The padding has to be replaced by a token first, which then must not
be the one that lengths are inferred from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.ledger.entry import Answer, Entry, raised
from conformance.ledger.transformers import tdt

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="transducers",
    case="labels padded with −100",
    theirs="TDT: an error of `gather`",
    ours="not followed: labels beyond a sample's length may be anything",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    # A label without a step, one of two classes and two durations, and a blank with a step: 1/4·1/4.
    given = tdt(frames=1, labels=[1], durations=[0, 1], reduction="sum", padding=1)
    theirs = raised(LOSS_MAPPING["ParakeetForTDT"], **given)
    yield Answer("loss", theirs, "RuntimeError", np.log(16.0), refloss.LOSS_MAPPING["ParakeetForTDT"](**given).loss)
