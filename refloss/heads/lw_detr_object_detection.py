"""Object detection as in LW-DETR and RF-DETR: IoU-aware classes, groups of queries, the encoder's proposals."""

from __future__ import annotations

from functools import partial

from refloss import arrays
from refloss.cases import drawn_scenes, scenes
from refloss.configuration import read
from refloss.detection import detr, engine, terms
from refloss.detection.engine import Head, Options
from refloss.detection.inputs import Inputs
from refloss.detection.specification import DETR, ENCODER_OUTPUTS, LAYERS, matching_head
from refloss.detection.targets import read_targets
from refloss.kernels.one_class.loop import Focus
from refloss.loss import loss
from refloss.losses.parts.iou_aware_bce import ONE_CLASS_LOOP
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

GAMMA = 2.0


@loss(
    matching_head(
        layers=(*LAYERS, *ENCODER_OUTPUTS),
        classes="IoU-aware",
        config=(*DETR, "focal_alpha", "group_detr", "class_loss_coefficient"),
        components=("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"),
        keys=("LwDetrForObjectDetection", "RfDetrForObjectDetection"),
        order=280,
        follows="transformers' LwDetrForObjectDetectionLoss",
        cases=partial(scenes.grouped_cases, seed=120),
        draw=drawn_scenes.lw_detr,
    )
)
def lw_detr_object_detection(
    logits: ArrayLike,
    labels: Objects,
    pred_boxes: ArrayLike,
    config: Configuration,
    outputs_class: ArrayLike | None = None,
    outputs_coord: ArrayLike | None = None,
    enc_outputs_class: ArrayLike | None = None,
    enc_outputs_coord: ArrayLike | None = None,
    *,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    assignment: Assignment | None = None,
    num_boxes: Scalar | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Matching by groups, then IoU-aware classes and boxes, as transformers' LwDetrForObjectDetectionLoss.

    As refloss.deformable_detr_object_detection, but for

    - the matching: the queries are config.group_detr groups of Q // group_detr, each of which is matched with all
      objects (a rest of queries with none); num_boxes is group_detr times as large
    - loss_ce: losses/parts/iou_aware_bce.py with α = focal_alpha and γ = 2 of every query and class; the sum over
      num_boxes; its weight in the total is class_loss_coefficient
    - the encoder's proposals as one more layer, in as many groups, whose components end in "_enc"

    Held constant: the matching, num_boxes, the quality of matched queries.

    Args:
        logits: [B, Q, K] with K of at least num_labels.
        config: with group_detr, class_loss_coefficient and focal_alpha.
        enc_outputs_class, enc_outputs_coord: [B, P, K] and [B, P, 4]; required.
        num_boxes: what losses are divided by, all groups together.
        The others are as in refloss.object_detection.

    Returns:
        As refloss.deformable_detr_object_detection; the encoder's layer comes last. grads: also "enc_outputs_class" and
        "enc_outputs_coord". "margin" is that of the group which has the smallest.

    Edges:
        As refloss.deformable_detr_object_detection. A matched box that does not touch its object has quality 0.01.

    Raises:
        As refloss.object_detection.
    """
    inputs, classes = Inputs(grad=grad, grad_dtype=grad_dtype), detr.class_count(config)
    sizes = detr.add_predictions(inputs, logits, pred_boxes, minimum=classes)
    layers = [detr.last_layer(inputs), *detr.auxiliary_layers(inputs, config, outputs_class, outputs_coord, sizes)]
    layers.append(detr.encoder_layer(inputs, enc_outputs_class, enc_outputs_coord, sizes))
    groups = arrays.integer(read(config, "group_detr"), "config.group_detr", low=1)
    alpha = detr.coefficient(config, "focal_alpha")
    head = Head(
        matcher=detr.matcher(config, "focal")._replace(groups=groups),
        terms=(
            terms.boxes(),
            terms.quality_classes("loss_ce", ONE_CLASS_LOOP, Focus(alpha, 1.0, GAMMA)),
            terms.cardinality(of_softmax=False),
        ),
        weights=detr.box_weights(config, detr.coefficient(config, "class_loss_coefficient")),
    )
    targets = read_targets(labels, sizes["B"], [classes] * sizes["B"])
    return engine.run(head, layers, targets, inputs, Options(grad_output, assignment, num_boxes, backend))
