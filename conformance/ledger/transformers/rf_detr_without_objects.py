"""Without an object in the batch, RF-DETR's loss with masks is an empty tensor.

The losses of masks are zeros of the shape of no masks, and the total takes that shape: backward() raises. One batch
of empty images ends training. In rfdetr, which the model is from, they are 0 and connected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers.loss.loss_utils import LOSS_MAPPING

from conformance.call import array
from conformance.detection import double_precision, golden_run, run_refloss
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="detection",
    case="RF-DETR with masks, no objects in the batch",
    theirs="both losses of masks, and so the total, are empty tensors of shape (0, h, w), without a gradient",
    ours="not followed: 0, and the other components",
    seen={"transformers": "5.24.0"},
)


KEY = "RfDetrForInstanceSegmentation"


def reproduce() -> Iterator[Answer]:
    run = golden_run(KEY, "no-objects", auxiliary_loss=False)
    with double_precision():
        loss, components, _ = LOSS_MAPPING[KEY](**run.arguments, device="cpu")
    _, ours = run_refloss(run, 1.0)
    exact = run.arguments["config"].class_loss_coefficient * components["loss_ce"].item()
    yield Answer("loss", array(loss), np.zeros((0, 4, 5)), exact, ours.loss, our_tolerance=1e-6)
    theirs, shape = array(components["loss_mask_ce"]), np.zeros((0, 4, 5))
    yield Answer("the loss of masks", theirs, shape, 0.0, ours.components["loss_mask_ce"])
