"""Segmentation as in Conditional DETR: sigmoid focal classification, boxes and masks."""

from __future__ import annotations

from functools import partial

from refloss.cases import drawn_scenes, scenes
from refloss.detection import detr, engine
from refloss.detection.engine import Head, Options
from refloss.detection.inputs import Inputs
from refloss.detection.specification import DETR, OF_MASKS, matching_head
from refloss.detection.targets import read_targets
from refloss.loss import loss
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
        masks=True,
        classes="focal",
        config=(*DETR, *OF_MASKS, "focal_alpha"),
        components=("loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "loss_mask", "loss_dice"),
        keys=("ConditionalDetrForSegmentation",),
        order=230,
        follows="transformers' DeformableDetrForSegmentationLoss",
        cases=partial(scenes.detr_cases, seed=70, masks=True),
        draw=partial(drawn_scenes.detr, masks=True),
    )
)
def deformable_detr_segmentation(
    logits: ArrayLike,
    labels: Objects,
    pred_boxes: ArrayLike,
    pred_masks: ArrayLike,
    config: Configuration,
    outputs_class: ArrayLike | None = None,
    outputs_coord: ArrayLike | None = None,
    *,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    assignment: Assignment | None = None,
    num_boxes: Scalar | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Focal classes, boxes and masks, as transformers' DeformableDetrForSegmentationLoss (Conditional DETR).

    The terms of refloss.deformable_detr_object_detection and the masks of refloss.segmentation. The matching is DETR's:
    its class cost is −p_k of a softmax, although the classes are trained as sigmoids; so it is in transformers.
    Held constant: the matching, num_boxes.

    Args:
        logits: [B, Q, K] with K = num_labels.
        pred_masks, labels, config: as in refloss.segmentation, with focal_alpha instead of eos_coefficient.
        The others are as in refloss.object_detection.

    Returns:
        As refloss.segmentation, without "lse".

    Raises:
        As refloss.segmentation.
    """
    inputs = Inputs(grad=grad, grad_dtype=grad_dtype)
    sizes = detr.add_predictions(inputs, logits, pred_boxes, minimum=detr.class_count(config))
    auxiliary = detr.auxiliary_layers(inputs, config, outputs_class, outputs_coord, sizes)
    weights = detr.box_weights(config) | detr.mask_weights(config)
    head = Head(detr.matcher(config, "softmax"), detr.focal_terms(config), weights)
    targets = read_targets(labels, sizes["B"], [detr.class_count(config)] * sizes["B"], with_masks=True)
    options = Options(grad_output, assignment, num_boxes, backend)
    layers = [detr.mask_layer(inputs, pred_masks, sizes), *auxiliary]
    return engine.run(head, layers, targets, inputs, options)
