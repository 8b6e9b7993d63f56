"""Panoptic segmentation as in DETR: object detection, and a mask for every query of the last layer."""

from __future__ import annotations

from functools import partial

from refloss.cases import drawn_scenes, scenes
from refloss.detection import detr, engine, terms
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
        classes="cross-entropy",
        config=(*DETR, *OF_MASKS, "eos_coefficient"),
        components=("loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "loss_mask", "loss_dice"),
        intermediates=("lse",),
        keys=("ForSegmentation",),
        order=210,
        follows="transformers' ForSegmentationLoss",
        cases=partial(scenes.detr_cases, seed=50, classes=6, masks=True),
        draw=partial(drawn_scenes.detr, extra=1, masks=True),
    )
)
def segmentation(
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
    """Object detection and masks, as transformers' ForSegmentationLoss (DETR).

    As refloss.object_detection, and on the last layer alone, with x a matched query's mask upsampled bilinearly to the
    size of the targets and P its number of pixels:

    - loss_mask: Σ over matched masks of the mean over pixels of the sigmoid focal loss (α = 1/4, γ = 2) / num_boxes
    - loss_dice: Σ over matched masks of 1 − (2·Σ p·t + 1)/(Σ p + Σ t + 1) with p = σ(x), over num_boxes

    weighted by mask_loss_coefficient and dice_loss_coefficient. Gradients: see refloss.sigmoid_focal and refloss.dice,
    handed back through the exact adjoint of the upsampling. Held constant: the matching, num_boxes.

    Args:
        logits, pred_boxes, outputs_class, outputs_coord, grad_output, grad, grad_dtype, assignment, num_boxes,
            backend: as in refloss.object_detection.
        labels: also with "masks" [n, H, W], bool, integers or floats in [0, 1]; images may differ in size: all are
            padded with 0, to the right and below, to the largest, and the padding counts as background.
        pred_masks: [B, Q, h, w].
        config: also with mask_loss_coefficient and dice_loss_coefficient.

    Returns:
        As refloss.object_detection. grads: also "pred_masks". intermediates: also "dice" [M] of the matched masks.

    Raises:
        As refloss.object_detection, also for masks of the wrong rank, number or range.
    """
    classes = detr.class_count(config)
    inputs = Inputs(grad=grad, grad_dtype=grad_dtype)
    sizes = detr.add_predictions(inputs, logits, pred_boxes, classes=classes + 1)
    auxiliary = detr.auxiliary_layers(inputs, config, outputs_class, outputs_coord, sizes)
    head = Head(
        matcher=detr.matcher(config, "softmax"),
        terms=(
            terms.softmax_classes(classes, detr.coefficient(config, "eos_coefficient")),
            terms.boxes(),
            terms.cardinality(of_softmax=True),
        ),
        weights=detr.box_weights(config) | detr.mask_weights(config),
    )
    targets = read_targets(labels, sizes["B"], [classes] * sizes["B"], with_masks=True)
    options = Options(grad_output, assignment, num_boxes, backend)
    layers = [detr.mask_layer(inputs, pred_masks, sizes), *auxiliary]
    return engine.run(head, layers, targets, inputs, options)
