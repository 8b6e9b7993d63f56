"""The matcher of DETR's family has no bfloat16 and no float16 on a CPU.

Its costs of boxes are torch.cdist's, which is not implemented for them. A model in half precision trains on a GPU and
fails in a test on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.detection import golden_run
from conformance.ledger.entry import Answer, Entry, raised

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="detection",
    case="`bbox_cost` for bfloat16 and float16 boxes",
    theirs="`torch.cdist` fails on a CPU",
    ours="not followed: any float dtype",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    logits, boxes = torch.zeros(1, 1, 4), torch.tensor([[[0.5, 0.5, 0.25, 0.25]]])
    labels = [{"class_labels": torch.tensor([0]), "boxes": boxes[0]}]
    config = golden_run("ForObjectDetection", auxiliary_loss=False, num_labels=3).arguments["config"]
    for dtype in (torch.bfloat16, torch.float16):
        given = {"logits": logits.to(dtype), "pred_boxes": boxes.to(dtype), "labels": labels, "config": config}
        theirs = raised(LOSS_MAPPING["ForObjectDetection"], **given, device="cpu")
        ours = refloss.LOSS_MAPPING["ForObjectDetection"](**given).components["loss_ce"]
        yield Answer(f"the loss of classes in {dtype}", theirs, "NotImplementedError", np.log(4.0), ours)
