"""From the third image on, Grounding DINO trains the classes of another image.

Labels are rows of the label maps of all images, one after the other. Each image's offset should be the number of
classes before it, and is the number of its own: the third of three images of five classes takes the second's rows.
Where prompts have different numbers of classes the second image is wrong too, or an IndexError.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from transformers.loss.loss_grounding_dino import GroundingDinoImageLoss

import refloss
from conformance.detection import golden_run
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="detection",
    case="Grounding DINO: targets from the third image on",
    theirs=(
        "`_get_target_classes_one_hot` adds the image's own number of classes, not that of the images before it: "
        "with three images of five classes, the third takes the second's rows; with unequal numbers the second is "
        "wrong too, or an IndexError"
    ),
    ours="followed; the IndexError is a ValueError that says so. The matching's costs use the right rows on both sides",
    seen={"transformers": "5.24.0"},
    followed=True,
)


def reproduce() -> Iterator[Answer]:
    """Three images of two classes each; every row of the maps has a place of its own."""
    logits, maps = torch.zeros(3, 1, 6), torch.eye(6).reshape(3, 2, 6)
    one = torch.tensor([0])
    given: dict[str, Any] = {"logits": logits, "label_maps": tuple(maps)}
    method = GroundingDinoImageLoss._get_target_classes_one_hot
    self = SimpleNamespace(_get_source_permutation_idx=lambda _: (torch.arange(3), torch.zeros(3, dtype=torch.long)))
    target = method(self, given, [{"class_labels": one}] * 3, [(one, one)] * 3)
    run = golden_run("GroundingDinoForObjectDetection")
    ours = refloss.grounding_dino_object_detection(
        logits,
        [{"class_labels": one, "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 3,
        torch.full((3, 1, 4), 0.4),
        config=run.arguments["config"],
        label_maps=given["label_maps"],
        text_mask=torch.ones(3, 1, 6, dtype=torch.bool),
    )
    # Of logits of 0 the gradient is below 0 at the target alone.
    yield Answer("the third image's row", int(target[2, 0].argmax()), 2, 4, int(ours.grads["logits"][2, 0].argmin()))
