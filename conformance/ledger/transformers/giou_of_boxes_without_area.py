"""Two boxes without area, of different pairs, make the gradients of both pairs NaN.

The loss needs the GIoU of matched pairs, and takes the diagonal of the matrix of all with all. Two points have a
union of 0; their 0/0 is multiplied by a gradient of 0 and reaches the boxes. A model that draws one box to a point
while an annotation is one stops training.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers.loss.loss_for_object_detection import ImageLoss

import refloss
from conformance.call import value_and_gradient
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="detection",
    case="two boxes without area, a query's and another query's object's",
    theirs="the whole N×N matrix of GIoUs is differentiated, and 0·inf of such a pair is NaN for both",
    ours="not followed: only matched pairs are computed",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]], dtype=torch.float64)
    targets = boxes.flip(0)
    pair = torch.arange(2)
    self = SimpleNamespace(_get_source_permutation_idx=lambda _: (torch.zeros(2, dtype=torch.long), pair))

    def giou(given: torch.Tensor) -> torch.Tensor:
        outputs, labels = {"pred_boxes": given[None]}, [{"boxes": targets}]
        loss: torch.Tensor = ImageLoss.loss_boxes(self, outputs, labels, [(pair, pair)], 1)["loss_giou"]
        return loss

    _, gradient = value_and_gradient(giou, boxes)
    ours = refloss.giou(boxes, targets, box_format="cxcywh", reduction="sum").grads["boxes1"]
    yield Answer("finite gradients", np.isfinite(gradient).all(), False, True, np.isfinite(ours).all())
