"""RF-DETR's matcher looks at as many points of a mask as a batch has numbers in its boxes.

The height and the width that decide it are read off the boxes, [B·Q, 4], where the masks were meant: B·Q·4 // ratio
points for H·W // ratio. How well masks are matched depends on the batch size, and on whether a model trains; two
images of four queries and masks of 12 × 12 pixels have 2 points instead of 9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.detection import double_precision, golden_run
from conformance.ledger.entry import Answer, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = Entry(
    topic="detection",
    case="RF-DETR with masks: how many points the matcher looks at",
    theirs=(
        "B·Q·4 // `mask_point_sample_ratio`, from the shape of the boxes where that of the masks was meant: the "
        "matching depends on the batch size, and two images of four queries and masks of 12 × 12 pixels have 2 "
        "points instead of 9"
    ),
    ours="not followed: as many as `matcher_points` has; of a seed, max(1, h·w // ratio)",
    seen={"transformers": "5.24.0"},
)


KEY = "RfDetrForInstanceSegmentation"


def reproduce() -> Iterator[Answer]:
    run, asked, generate = golden_run(KEY, "last-layer"), [], torch.rand

    def recorded(*shape: int, **options: Any) -> torch.Tensor:
        asked.append(shape)
        return generate(*shape, **options)

    with double_precision(), mock.patch("torch.rand", recorded):
        LOSS_MAPPING[KEY](**run.arguments, device="cpu")
    images, queries = run.arguments["logits"].shape[:2]
    height, width = run.arguments["pred_masks"].shape[2:]
    ratio = run.arguments["config"].mask_point_sample_ratio
    own = {name: value for name, value in run.arguments.items() if not name.endswith("points")}
    ours = refloss.LOSS_MAPPING[KEY](**own).intermediates["matcher_points"].shape[0]
    yield Answer("points", asked[0][1], images * queries * 4 // ratio, height * width // ratio, ours)
