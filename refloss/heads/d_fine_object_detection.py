"""Object detection as in D-FINE: RT-DETR's terms, and edges of boxes as distributions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from refloss.cases import drawn_scenes, scenes
from refloss.detection import detr, rt_detr, terms
from refloss.detection.engine import Options
from refloss.detection.inputs import Inputs
from refloss.detection.rt_detr import Predictions, Recipe
from refloss.detection.specification import CORNERS, OF_EDGES, PROPOSALS, RT_DETR, matching_head
from refloss.kernels.one_class.loop import Focus
from refloss.loss import loss
from refloss.losses.varifocal import ONE_CLASS_LOOP
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
        classes="varifocal",
        clamps=True,
        config=(*RT_DETR, *OF_EDGES, "focal_loss_alpha", "weight_loss_vfl"),
        components=("loss_vfl", "loss_bbox", "loss_giou", "loss_fgl", "loss_ddf"),
        keys=("DFineForObjectDetection",),
        order=260,
        follows="transformers' DFineForObjectDetectionLoss",
        cases=partial(scenes.layered_cases, seed=100, deciding=6105, corners=True),
        draw=partial(drawn_scenes.rt_detr, corners=True),
    )
)
def d_fine_object_detection(
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
    """Varifocal classes, boxes and distributions of edges, as transformers' DFineForObjectDetectionLoss.

    As refloss.rt_detr_object_detection, with all predicted boxes clamped to [0, 1] (no gradient outside), and for the
    layers before the last and for denoising queries

    - loss_fgl: losses/parts/fine_grained.py of the matched queries' edges; the sum over num_boxes
    - loss_ddf: losses/parts/distillation.py of all queries' edges, their teacher being the last layer's with the same
      kind of queries; 0 for a layer that is its own teacher

    Held constant: matchings, num_boxes, the quality, the focal weight of negative classes, reference points, the
    mixture of two bins that a target is, the IoU that weighs it, the teacher's corners and logits.

    Args:
        config: with max_num_bins (even), reg_scale, up, weight_loss_fgl and weight_loss_ddf as well.
        predicted_corners: [B, L, Q, 4·(max_num_bins + 1)]: logits for the left, top, right and bottom edges.
        initial_reference_points: [B, L, Q, 4], centre and size. Both required by auxiliary_loss, else without effect.
        The others are as in refloss.rt_detr_object_detection.

    Returns:
        As refloss.rt_detr_object_detection; the gradient of initial_reference_points is 0.

    Edges:
        As refloss.rt_detr_object_detection. A target beyond the first or the last offset is that bin alone. No matched
        query: loss_fgl is 0, loss_ddf the average of the others.

    Raises:
        As refloss.rt_detr_object_detection.
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
    alpha = detr.coefficient(config, "focal_loss_alpha")
    gamma = detr.coefficient(config, "focal_loss_gamma", low=0.0)
    recipe = Recipe(
        classes=terms.quality_classes("loss_vfl", ONE_CLASS_LOOP, Focus(1.0, alpha, gamma)),
        weights=("vfl", "bbox", "giou", "fgl", "ddf"),
        bins=rt_detr.bins(config),
    )
    inputs, options = Inputs(grad=grad, grad_dtype=grad_dtype), Options(grad_output, assignment, num_boxes, backend)
    return rt_detr.layered_loss(inputs, given, labels, config, denoising_meta_values, recipe, options)
