"""The cardinality error counts rounded probabilities: a logit just above 0 is no object.

σ(x) > 1/2 is x > 0, and false in float32 for x below 1e-7. The error is only logged; it is off by the queries that a
model is undecided about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss

import refloss
from conformance.call import array
from conformance.detection import golden_run
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="detection",
    case="`cardinality_error` of focal heads",
    theirs="σ(x) > 1/2 after rounding: false for 0 < x < 1e-7 in float32",
    ours="not followed: x > 0",
    seen={"transformers": "5.24.0"},
)


def reproduce() -> Iterator[Answer]:
    # One query, and one object.
    logits, boxes = torch.full((1, 1, 5), 5e-8), torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    labels = [{"class_labels": torch.tensor([0]), "boxes": boxes[0]}]
    counted = DeformableDetrImageLoss.loss_cardinality(None, {"logits": logits}, labels, None, 1)
    config = golden_run("DeformableDetrForObjectDetection", auxiliary_loss=False).arguments["config"]
    ours = refloss.deformable_detr_object_detection(logits, labels, boxes, config=config).components
    yield Answer("the error", array(counted["cardinality_error"]), 1.0, 0.0, ours["cardinality_error"])
