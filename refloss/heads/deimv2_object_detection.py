"""Object detection as in DEIMv2: D-FINE's terms with a matching-aware loss, and a union of all layers' matchings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from refloss.cases import drawn_scenes, scenes
from refloss.configuration import flag, read
from refloss.detection import detr, rt_detr, terms
from refloss.detection.engine import Options
from refloss.detection.inputs import Inputs
from refloss.detection.matching import Matching
from refloss.detection.rt_detr import Predictions, Recipe
from refloss.detection.specification import CORNERS, OF_EDGES, PROPOSALS, RT_DETR, matching_head
from refloss.detection.targets import Targets
from refloss.kernels.one_class.loop import Focus
from refloss.loss import loss
from refloss.losses.parts.matching_aware import ONE_CLASS_LOOP
from refloss.result import LossResult
from refloss.typing import (
    ArrayLike,
    Assignment,
    Backend,
    Configuration,
    Cotangents,
    DTypeLike,
    Gradients,
    Objects,
    Scalar,
)


@loss(
    matching_head(
        layers=(*PROPOSALS, *CORNERS),
        noise=True,
        classes="matching-aware",
        clamps=True,
        config=(*RT_DETR, *OF_EDGES, "mal_alpha", "weight_loss_mal", "use_dense_one_to_one"),
        components=("loss_mal", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"),
        intermediates=(
            "assignment_union",
            "num_boxes_union",
        ),
        keys=("Deimv2ForObjectDetection",),
        order=270,
        follows="transformers' Deimv2ForObjectDetectionLoss",
        cases=partial(scenes.layered_cases, seed=110, deciding=2115, corners=True, union=True),
        draw=partial(drawn_scenes.rt_detr, corners=True, union=True),
    )
)
def deimv2_object_detection(
    logits: ArrayLike,
    labels: Objects,
    pred_boxes: ArrayLike,
    config: Configuration,
    outputs_class: ArrayLike | None = None,
    outputs_coord: ArrayLike | None = None,
    enc_topk_logits: ArrayLike | None = None,
    enc_topk_bboxes: ArrayLike | None = None,
    denoising_meta_values: Mapping[str, ArrayLike] | None = None,
    predicted_corners: ArrayLike | None = None,
    initial_reference_points: ArrayLike | None = None,
    *,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    assignment: Assignment | None = None,
    num_boxes: Scalar | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Matching-aware classes, boxes and distributions of edges, as transformers' Deimv2ForObjectDetectionLoss.

    As refloss.d_fine_object_detection, with loss_mal (losses/parts/matching_aware.py) in the place of loss_vfl.

    With use_dense_one_to_one, boxes and edges of all matched layers take one matching, the union of theirs: an image's
    pairs of query and object in the order of how many layers made them, of which each query keeps its first; equally
    many go by the smaller query and object. (transformers leaves their order to an unstable sort.) Their num_boxes is
    the number of pairs, at least 1. Classes, and denoising queries, keep their own matchings.

    Without auxiliary_loss, denoising queries are not dropped from the last layer; so it is in transformers.

    Held constant: matchings, their union, num_boxes, the quality, the focal weight of negative classes, reference
    points, the mixture of two bins that a target is, the IoU that weighs it, the teacher's corners and logits.

    Args:
        config: as there, with weight_loss_mal in the place of weight_loss_vfl, and mal_alpha (None counts as 1) in that
            of focal_loss_alpha, and use_dense_one_to_one.
        assignment: a mapping may have "assignment_union".
        num_boxes: does not affect what is divided by the number of pairs in the union.
        The others are as in refloss.d_fine_object_detection.

    Returns:
        As refloss.d_fine_object_detection; with use_dense_one_to_one "assignment_union" and "num_boxes_union" are
        among the intermediates.

    Edges:
        As refloss.d_fine_object_detection, but a positive class counts however bad its box is.

    Raises:
        As refloss.d_fine_object_detection; with use_dense_one_to_one also if a query of the union is not among the
        encoder's proposals.
    """
    given = Predictions(
        logits,
        pred_boxes,
        outputs_class,
        outputs_coord,
        enc_topk_logits,
        enc_topk_bboxes,
        predicted_corners,
        initial_reference_points,
    )
    alpha = 1.0 if read(config, "mal_alpha") is None else detr.coefficient(config, "mal_alpha")
    gamma = detr.coefficient(config, "focal_loss_gamma", low=0.0)
    recipe = Recipe(
        classes=terms.quality_classes("loss_mal", ONE_CLASS_LOOP, Focus(1.0, alpha, gamma)),
        weights=("mal", "bbox", "giou", "fgl", "ddf"),
        bins=rt_detr.bins(config),
        union=_union if flag(config, "use_dense_one_to_one") else None,
        drops_with_layers=True,
    )
    inputs, options = Inputs(grad=grad, grad_dtype=grad_dtype), Options(grad_output, assignment, num_boxes, backend)
    return rt_detr.layered_loss(inputs, given, labels, config, denoising_meta_values, recipe, options)


def _union(matchings: list[Matching], targets: Targets) -> Matching:
    """Of all pairs, for each query the one that most layers made."""
    table = np.concatenate([matching.table() for matching in matchings])
    pairs, counts = np.unique(table, axis=0, return_counts=True)
    pairs = pairs[np.lexsort((-counts, pairs[:, 0]))]
    _, first = np.unique(pairs[:, :2], axis=0, return_index=True)
    return Matching(*pairs[np.sort(first)].T)
