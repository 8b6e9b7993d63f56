"""Pixels, masks and boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gauntlet import resampling
from tests.gauntlet.honest import BOXES, HONEST
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, has, ignored, stepped


def over_batch(self: Any, values: np.ndarray) -> np.ndarray:
    return np.full((len(values), 1), self.sum(values))


def enclosing_for_union(self: Any, x: Any, y: Any) -> np.ndarray:
    return 1 - x.common * y.common / (x.around * y.around)


def slopes_of_enclosing(self: Any, x: Any, y: Any) -> np.ndarray:
    common, around = (x.common * y.common)[..., None], (x.around * y.around)[..., None]
    of_common, of_around = x.of_common * y.common[..., None], x.of_around * y.around[..., None]
    return (common * of_around - around * of_common) / around**2


def intersection_for_union(self: Any, x: Any, y: Any) -> np.ndarray:
    common, enclosing = x.common * y.common, x.around * y.around
    return HONEST["iou"].loss(self, x, y) + (enclosing - common) / enclosing


def slopes_of_intersection(self: Any, x: Any, y: Any) -> np.ndarray:
    return HONEST["iou"].slopes(self, x, y) + slopes_of_enclosing(self, x, y)


REGION_MISTAKES = [
    Mistake(
        "align_corners",
        "dmlc/gluon-cv#437",
        ("semantic_segmentation",),
        stepped(weights=lambda _, *sizes: resampling.corners_aligned(*sizes)),
        "align_corners is on",
    ),
    Mistake(
        "nearest",
        "NVIDIA-AI-IOT/torch2trt#160",
        ("semantic_segmentation",),
        stepped(weights=lambda _, *sizes: resampling.nearest(*sizes)),
        "nearest instead of bilinear",
    ),
    Mistake(
        "no auxiliary loss",
        "mseg-dataset/mseg-semantic#16",
        ("semantic_segmentation",),
        stepped(auxiliary_weight=lambda self, parameters: 0.0),
        "the auxiliary loss is left out",
        has("auxiliary_logits"),
        "where there are auxiliary logits",
    ),
    ignored("auxiliary_loss_weight", "open-mmlab/mmsegmentation#802", ("semantic_segmentation",)),
    ignored("box_format", "stevebottos/owl-vit-object-detection#14", BOXES),
    Mistake(
        "the enclosing box for the union",
        TUTORIALS,
        ("iou",),
        stepped(loss=enclosing_for_union, slopes=slopes_of_enclosing),
        "the enclosing box is taken for the union",
    ),
    Mistake(
        "the intersection for the union",
        "Megvii-BaseDetection/YOLOX#712",
        ("giou",),
        stepped(loss=intersection_for_union, slopes=slopes_of_intersection),
        "the intersection is taken for the union",
    ),
    Mistake(
        "boxes apart overlap",
        "LongxingTan/tfyolo#4",
        BOXES,
        stepped(overlap=lambda self, length: length),
        "boxes are not clamped",
    ),
    Mistake("dice without 1", "aim-uofa/AdelaiDet#610", ("dice",), stepped(one=lambda self: 0), "dice lacks its + 1"),
    Mistake(
        "dice of the batch",
        "NifTK/NiftyNet#22",
        ("dice",),
        stepped(sums=over_batch, together=lambda self, losses: losses.mean()),
        "dice sums over the batch",
    ),
]
