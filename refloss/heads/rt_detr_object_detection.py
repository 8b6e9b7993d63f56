"""Object detection as in RT-DETR: varifocal classes, layers before the last, denoising queries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from refloss.cases import drawn_scenes, scenes
from refloss.detection import detr, rt_detr, terms
from refloss.detection.engine import Options
from refloss.detection.inputs import Inputs
from refloss.detection.rt_detr import Predictions, Recipe
from refloss.detection.specification import PROPOSALS, RT_DETR, matching_head
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
        layers=PROPOSALS,
        noise=True,
        classes="varifocal",
        config=(*RT_DETR, "focal_loss_alpha", "weight_loss_vfl"),
        components=("loss_vfl", "loss_bbox", "loss_giou"),
        keys=("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection"),
        order=250,
        follows="transformers' RTDetrForObjectDetectionLoss",
        cases=partial(scenes.layered_cases, seed=90, deciding=8095),
        draw=drawn_scenes.rt_detr,
    )
)
def rt_detr_object_detection(
    logits: ArrayLike,
    labels: Objects,
    pred_boxes: ArrayLike,
    config: Configuration,
    outputs_class: ArrayLike | None = None,
    outputs_coord: ArrayLike | None = None,
    enc_topk_logits: ArrayLike | None = None,
    enc_topk_bboxes: ArrayLike | None = None,
    denoising_meta_values: Mapping[str, ArrayLike] | None = None,
    *,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    assignment: Assignment | None = None,
    num_boxes: Scalar | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Hungarian matching, then varifocal classes and boxes, as transformers' RTDetrForObjectDetectionLoss.

    L = Σ of all components, each reported times its weight, of the last layer and of

    - the layers before it, and then the encoder's best proposals, whose components end in "_aux_0", "_aux_1", ...
    - the denoising queries of all layers, the last included, whose components end in "_dn_0", "_dn_1", ...

    with for each of them

    - loss_vfl: losses/varifocal.py of every query and class, the quality of a matched query's target class being its
      box's IoU; the sum over num_boxes
    - loss_bbox, loss_giou: as in refloss.object_detection

    Denoising queries are the first dn_num_split[0] of all. They are not matched: those in dn_positive_idx stand for the
    objects of their image, one group of queries after the other, and their num_boxes is dn_num_group times larger.
    Held constant: matchings, num_boxes, the quality, and the focal weight of negative classes.

    Args:
        logits: [B, Q, K] with K = num_labels; any float dtype and layout, as all arrays here. With denoising queries,
            Q counts them.
        labels: as in refloss.object_detection.
        pred_boxes: [B, Q, 4].
        config: object or mapping with num_labels, matcher_class_cost, matcher_bbox_cost, matcher_giou_cost,
            use_focal_loss (the class cost: that of refloss.deformable_detr_object_detection with matcher_alpha and
            matcher_gamma, or −p_k of a softmax), weight_loss_vfl, weight_loss_bbox, weight_loss_giou, focal_loss_alpha,
            focal_loss_gamma, auxiliary_loss.
        outputs_class, outputs_coord: [B, L, Q, K] and [B, L, Q, 4], the outputs of all layers. enc_topk_logits,
            enc_topk_bboxes: [B, P, K] and [B, P, 4]. Required by auxiliary_loss, else without effect.
        denoising_meta_values: mapping with "dn_positive_idx" (for each image the queries that stand for its objects),
            "dn_num_group" and "dn_num_split" (how many queries are for denoising, and how many are not); or None.
        assignment: as in refloss.object_detection, for the last layer, then "_aux_0", "_aux_1", ...
        The others are as in refloss.object_detection; a component's upstream gradient is that of what is reported.

    Returns:
        loss. components. grads of every float input given. intermediates: as in refloss.object_detection, without
        "lse", and for denoising queries without costs and margins.

    Edges:
        As refloss.deformable_detr_object_detection. A matched box that does not touch its object has quality 0: its
        class has loss and gradient 0.

    Raises:
        As refloss.object_detection, also for denoising queries that do not exist or do not fit the objects.
    """
    given = Predictions(logits, pred_boxes, outputs_class, outputs_coord, enc_topk_logits, enc_topk_bboxes)
    alpha = detr.coefficient(config, "focal_loss_alpha")
    gamma = detr.coefficient(config, "focal_loss_gamma", low=0.0)
    recipe = Recipe(
        classes=terms.quality_classes("loss_vfl", ONE_CLASS_LOOP, Focus(1.0, alpha, gamma)),
        weights=("vfl", "bbox", "giou"),
    )
    inputs, options = Inputs(grad=grad, grad_dtype=grad_dtype), Options(grad_output, assignment, num_boxes, backend)
    return rt_detr.layered_loss(inputs, given, labels, config, denoising_meta_values, recipe, options)
