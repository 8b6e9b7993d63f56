"""Object detection as in Deformable, Conditional and DAB DETR: sigmoid focal classification."""

from __future__ import annotations

from functools import partial

from refloss.cases import drawn_scenes, scenes
from refloss.detection import detr, engine
from refloss.detection.engine import Head, Options
from refloss.detection.inputs import Inputs
from refloss.detection.specification import DETR, matching_head
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
        classes="focal",
        config=(*DETR, "focal_alpha"),
        components=("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"),
        keys=("DeformableDetrForObjectDetection", "ConditionalDetrForObjectDetection", "DabDetrForObjectDetection"),
        order=220,
        follows="transformers' DeformableDetrForObjectDetectionLoss",
        cases=partial(scenes.detr_cases, seed=60, deciding=1064),
        draw=drawn_scenes.detr,
    )
)
def deformable_detr_object_detection(
    logits: ArrayLike,
    labels: Objects,
    pred_boxes: ArrayLike,
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
    """Hungarian matching, then focal classes and boxes, as transformers' DeformableDetrForObjectDetectionLoss.

    As refloss.object_detection, but for

    - loss_ce: the sigmoid focal loss of every query and class (α = focal_alpha, γ = 2), a query's target being 1 for
      its object's class; the sum over num_boxes
    - cardinality_error: a query sees an object if a class of its has a probability above 1/2
    - the class cost: α·(1 − p)²·(−log(p + ε)) − (1 − α)·p²·(−log(1 − p + ε)) with p = σ(x), α = 1/4, ε = 10^-8

    Held constant: the matching, num_boxes.

    Args:
        logits: [B, Q, K] with K = num_labels.
        config: with focal_alpha instead of eos_coefficient; a negative one weighs both kinds of targets alike.
        The others are as in refloss.object_detection.

    Returns:
        As refloss.object_detection, without "lse".

    Edges:
        As refloss.object_detection. A logit of −inf is a class with loss and gradient 0 where it is negative. With
        more classes than num_labels, class num_labels is the target of every unmatched query, as in transformers.

    Raises:
        As refloss.object_detection.
    """
    inputs = Inputs(grad=grad, grad_dtype=grad_dtype)
    sizes = detr.add_predictions(inputs, logits, pred_boxes, minimum=detr.class_count(config))
    auxiliary = detr.auxiliary_layers(inputs, config, outputs_class, outputs_coord, sizes)
    head = Head(detr.matcher(config, "focal"), detr.focal_terms(config), detr.box_weights(config))
    targets = read_targets(labels, sizes["B"], [detr.class_count(config)] * sizes["B"])
    options = Options(grad_output, assignment, num_boxes, backend)
    return engine.run(head, [detr.last_layer(inputs), *auxiliary], targets, inputs, options)
