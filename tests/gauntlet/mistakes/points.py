"""Heads that look at masks in points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.mistakes.heads import entry
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, stepped
from tests.gauntlet.wrapped import Head

if TYPE_CHECKING:
    from refloss.cases.source import Case

RF_DETR, MASK2FORMER = ("rf_detr_instance_segmentation",), ("mask2former",)
POINTS = ("points", "candidate_points", "random_points", "matcher_points")


def turned(self: Head, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value)[..., ::-1] if name in POINTS else value for name, value in inputs.items()}


def of_corners(self: Head, inputs: dict[str, Any]) -> dict[str, Any]:
    masks = inputs["masks_queries_logits" if self.function == "mask2former" else "pred_masks"]
    size = np.array(masks.shape[:-3:-1])
    return {
        name: ((np.asarray(value) * (size - 1) + 0.5) / size).astype(np.float32) if name in POINTS else value
        for name, value in inputs.items()
    }


def has_points(case: Case) -> bool:
    """Whether some are given, and something is to be seen there."""
    return "matcher_points" in case.inputs and any(
        len(value) for name, value in case.inputs.items() if "class_labels" in name
    )


POINT_MISTAKES = [
    entry("mask_class_loss_coefficient", 1.0, TUTORIALS, RF_DETR),
    entry("mask_dice_loss_coefficient", 1.0, TUTORIALS, RF_DETR),
    entry("mask_weight", 1.0, TUTORIALS, MASK2FORMER),
    entry("no_object_weight", 1.0, TUTORIALS, MASK2FORMER),
    Mistake(
        "y of points before x",
        TUTORIALS,
        (*RF_DETR, *MASK2FORMER),
        stepped(Head, inputs=turned),
        "y of points before x",
        has_points,
        "where points are given",
    ),
    Mistake(
        "corners of masks aligned",
        TUTORIALS,
        (*RF_DETR, *MASK2FORMER),
        stepped(Head, inputs=of_corners),
        "points between the centres of corners",
        has_points,
        "where points are given",
    ),
]
