"""Object detection as in DETR: cross-entropy over the classes and no object, boxes by L1 and GIoU."""

from __future__ import annotations

from functools import partial

from refloss.cases import drawn_scenes, scenes
from refloss.detection import detr, engine, terms
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
        classes="cross-entropy",
        config=(*DETR, "eos_coefficient"),
        components=("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"),
        intermediates=("lse",),
        keys=("ForObjectDetection",),
        order=200,
        follows="transformers' ForObjectDetectionLoss",
        cases=partial(scenes.detr_cases, seed=40, classes=6),
        draw=partial(drawn_scenes.detr, extra=1),
    )
)
def object_detection(
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
    """Hungarian matching, then classes and boxes, as transformers' ForObjectDetectionLoss (DETR).

    L = loss_ce + λ_b·loss_bbox + λ_g·loss_giou for the last layer, and the same for each layer before it, i, whose
    components end in "_i":

    - loss_ce: cross-entropy of every query with its object's class, or with no object (the last class), whose weight
      is eos_coefficient; the weighted mean
    - loss_bbox: Σ |b − b'|₁ over the matched boxes / num_boxes
    - loss_giou: Σ (1 − GIoU) over the matched boxes / num_boxes
    - cardinality_error: how many queries see an object, less how many there are, absolute, the mean over images; a
      number for the log, in no total and without a gradient

    A layer's matching minimises class_cost·(−p_k) + bbox_cost·|b − b'|₁ − giou_cost·GIoU; see detection.matching.
    Gradients: those of refloss.cross_entropy and of losses/parts/boxes.py. Held constant: the matching, num_boxes.

    Args:
        logits: [B, Q, K + 1] with K = num_labels; any float dtype and layout, as all arrays here.
        labels: for each image a mapping with "class_labels" [n] and "boxes" [n, 4], centre and size in parts of the
            image's; n may be 0.
        pred_boxes: [B, Q, 4], the same way.
        config: object or mapping with num_labels, class_cost, bbox_cost, giou_cost, eos_coefficient, auxiliary_loss,
            bbox_loss_coefficient (λ_b), giou_loss_coefficient (λ_g), and with auxiliary_loss decoder_layers, which says
            how many of the layers are part of the total.
        outputs_class, outputs_coord: [L, B, Q, K + 1] and [L, B, Q, 4], the outputs of all layers; the last is not
            used. Required by auxiliary_loss, else without effect.
        grad_output: the total's upstream gradient, or a mapping from components to theirs: then the gradients are those
            of the components that it names.
        grad, grad_dtype, backend: as in refloss.cross_entropy.
        assignment: the caller's own matching: for each layer (the last, then 0, 1, ...) a list with a pair (queries,
            objects) for each image, or None to match; or a mapping such as an earlier result's intermediates.
        num_boxes: what box losses are divided by instead of the number of objects, at least 1: ranks that share a
            batch pass their mean.

    Returns:
        loss. components. grads of "logits", "pred_boxes", and "outputs_class" and "outputs_coord" where given; zeros
        where nothing flows. intermediates, with the layer's suffix: "cost_matrix" [Q, N] for the N objects of all
        images, "assignment" [M, 3] (image, query, object), "margin" [B] (what the next best assignment of an image
        costs more; computed when asked for), "iou" and "giou" [M] of the matched boxes, "num_boxes", "lse" [B, Q].

    Edges:
        No objects: box losses are 0. More objects than queries: the cheapest are matched. A cost that is not finite is
        replaced by the largest number, so that it is chosen last. Ties between corners: half of the derivative, as
        torch; boxes without area on both sides: NaN. Class NaN or infinite: as in refloss.cross_entropy.

    Raises:
        ValueError: a shape, a class label, a box with negative or undefined size, an assignment or a configuration
        that does not fit. TypeError: a dtype that does not.
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
        weights=detr.box_weights(config),
    )
    targets = read_targets(labels, sizes["B"], [classes] * sizes["B"])
    options = Options(grad_output, assignment, num_boxes, backend)
    return engine.run(head, [detr.last_layer(inputs), *auxiliary], targets, inputs, options)
