"""Instance segmentation as in RF-DETR: its object detection, and masks of every layer that are looked at in points."""

from __future__ import annotations

from functools import partial
from typing import Any

from refloss import arrays
from refloss.cases import drawn_scenes, scenes
from refloss.configuration import flag, read
from refloss.detection import detr, engine, point_terms, terms
from refloss.detection.engine import Head, Layer, Options
from refloss.detection.inputs import Inputs, required
from refloss.detection.point_terms import Kind
from refloss.detection.points import Given, Plan, Points
from refloss.detection.specification import DETR, ENCODER_OUTPUTS, LAYERS, POINTS, matching_head
from refloss.detection.targets import read_targets
from refloss.heads.lw_detr_object_detection import GAMMA
from refloss.kernels.one_class.loop import Focus
from refloss.kernels.points.loop import CostWeights
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

KIND = Kind("loss_mask_ce", "loss_mask_dice", bilinear=False, padded=False)
OVERSAMPLE = 3
_WEIGHTS = {"loss_mask_ce": "mask_class_loss_coefficient", "loss_mask_dice": "mask_dice_loss_coefficient"}


@loss(
    matching_head(
        masks=True,
        layers=(*LAYERS, "outputs_masks", *ENCODER_OUTPUTS, "enc_outputs_masks"),
        points=POINTS,
        classes="IoU-aware",
        config=(
            *DETR,
            *_WEIGHTS.values(),
            "mask_point_sample_ratio",
            "focal_alpha",
            "group_detr",
            "class_loss_coefficient",
        ),
        components=("loss_ce", "loss_bbox", "loss_giou", "cardinality_error", "loss_mask_ce", "loss_mask_dice"),
        keys=("RfDetrForInstanceSegmentation",),
        order=285,
        follows="transformers' RfDetrForSegmentationLoss",
        cases=partial(scenes.grouped_cases, seed=140, masks=True, deciding=145),
        draw=drawn_scenes.rf_detr,
    )
)
def rf_detr_instance_segmentation(
    logits: ArrayLike,
    labels: Objects,
    pred_boxes: ArrayLike,
    pred_masks: ArrayLike,
    config: Configuration,
    outputs_class: ArrayLike | None = None,
    outputs_coord: ArrayLike | None = None,
    outputs_masks: ArrayLike | None = None,
    enc_outputs_class: ArrayLike | None = None,
    enc_outputs_coord: ArrayLike | None = None,
    enc_outputs_masks: ArrayLike | None = None,
    *,
    matcher_points: ArrayLike | None = None,
    candidate_points: ArrayLike | None = None,
    random_points: ArrayLike | None = None,
    points: ArrayLike | None = None,
    seed: int = 0,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    assignment: Assignment | None = None,
    num_boxes: Scalar | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Detection by groups and masks at points, as transformers' RfDetrForSegmentationLoss.

    As refloss.lw_detr_object_detection, and for every layer, the auxiliary ones and the encoder's as well, with x a
    mask's logits at points, sampled bilinearly, and t the target's pixel that is nearest (detection/points.py and
    kernels/points/loop.py say which points, and what lies between and beside pixels):

    - cost of the matching: also mask_class_loss_coefficient times the mean of the binary cross-entropies of x and t,
      and mask_dice_loss_coefficient times the dice loss, at points that all masks share
    - loss_mask_ce: Σ over matched masks of the mean over their points of the binary cross-entropy of x and t
    - loss_mask_dice: Σ over matched masks of 1 − (2·Σ p·t + 1)/(Σ p + Σ t + 1) with p = σ(x)

    both over num_boxes, with the same weights. Of P = max(h, h·w // mask_point_sample_ratio) points of a matched mask
    ⌊3·P/4⌋ are those of 3·P candidates with the smallest |x|, the others random. The encoder's layer is part of the
    loss only with auxiliary_loss. Gradients: see losses/parts/mask_points.py; handed back through the exact adjoint of
    sampling. Held constant: the matching, num_boxes, the quality of matched queries, the points.

    Args:
        logits, pred_boxes, outputs_class, outputs_coord, enc_outputs_class, enc_outputs_coord: as in
            refloss.lw_detr_object_detection.
        labels: also with "masks" [n, H, W], bool, integers or floats in [0, 1]; images may differ in size.
        pred_masks, outputs_masks, enc_outputs_masks: [B, Q, h, w], [L, B, Q, h, w] and [B, P, h', w'].
        config: also with mask_class_loss_coefficient, mask_dice_loss_coefficient and mask_point_sample_ratio.
        matcher_points: of every layer [P, 2]: the last, the auxiliary ones, the encoder's; an array, or a list.
        candidate_points, random_points: of every layer [N, C, 2] and [N, R, 2] with R = P − ⌊3·P/4⌋; row k is that of
            the matched pair k, of which there are at most group_detr·Σ min(n_i, Q // group_detr).
        points: of every layer [N, P, 2], the points themselves; or None.
        seed: of the points that are not given. The matcher has max(1, h·w // mask_point_sample_ratio) then.
        The others are as in refloss.object_detection.

    Returns:
        As refloss.lw_detr_object_detection. grads: also "pred_masks", "outputs_masks" and "enc_outputs_masks".
        intermediates: also "dice" [M], "points" [M, P, 2] and "matcher_points" of each layer.

    Edges:
        As refloss.lw_detr_object_detection. Without matcher_points (P = 0) masks cost nothing; without objects both
        losses of masks are 0. A pixel that is not finite makes NaN of the samples next to it, and of the dice loss of
        its mask.

    Raises:
        As refloss.object_detection, also for masks and points of the wrong rank, number or range.
    """
    inputs, classes = Inputs(grad=grad, grad_dtype=grad_dtype), detr.class_count(config)
    sizes = detr.add_predictions(inputs, logits, pred_boxes, minimum=classes)
    layers = [detr.last_layer(inputs), *detr.auxiliary_layers(inputs, config, outputs_class, outputs_coord, sizes)]
    layers.append(detr.encoder_layer(inputs, enc_outputs_class, enc_outputs_coord, sizes))
    is_layered = flag(config, "auxiliary_loss")
    layers[-1] = layers[-1]._replace(counts=is_layered)
    _add_masks(inputs, pred_masks, outputs_masks, enc_outputs_masks, is_layered=is_layered)
    layers = _with_points(inputs, layers, config, seed, Given(matcher_points, candidate_points, random_points, points))
    groups = arrays.integer(read(config, "group_detr"), "config.group_detr", low=1)
    head = Head(
        matcher=detr.matcher(config, "focal")._replace(groups=groups),
        terms=(
            terms.boxes(),
            terms.quality_classes(
                "loss_ce", ONE_CLASS_LOOP, Focus(detr.coefficient(config, "focal_alpha"), 1.0, GAMMA)
            ),
            terms.cardinality(of_softmax=False),
        ),
        weights=detr.box_weights(config, detr.coefficient(config, "class_loss_coefficient"))
        | {component: detr.coefficient(config, name) for component, name in _WEIGHTS.items()},
    )
    targets = read_targets(labels, sizes["B"], [classes] * sizes["B"], with_masks=True)
    return engine.run(head, layers, targets, inputs, Options(grad_output, assignment, num_boxes, backend))


def _add_masks(
    inputs: Inputs, pred_masks: Any, outputs_masks: Any, enc_outputs_masks: Any, *, is_layered: bool
) -> None:
    """Take the masks of all layers."""
    images, queries, _ = inputs.tensors["logits"].value.shape
    detr.add_masks(inputs, "pred_masks", pred_masks, "B", "Q", shape={"B": images, "Q": queries})
    if is_layered:
        count = len(inputs.tensors["outputs_class"].value)
        required(outputs_masks, "outputs_masks", "config.auxiliary_loss is set")
        shape = {"L": count, "B": images, "Q": queries}
        detr.add_masks(inputs, "outputs_masks", outputs_masks, "L", "B", "Q", shape=shape)
    elif outputs_masks is not None:
        inputs.add("outputs_masks", outputs_masks)
    proposals = inputs.tensors["enc_outputs_class"].value.shape[1]
    required(enc_outputs_masks, "enc_outputs_masks", "they are matched as well")
    detr.add_masks(inputs, "enc_outputs_masks", enc_outputs_masks, "B", "P", shape={"B": images, "P": proposals})


def _with_points(inputs: Inputs, layers: list[Layer], config: Any, seed: Any, given: Given) -> list[Layer]:
    """The layers with their masks, which cost something and have losses."""
    ratio = arrays.integer(read(config, "mask_point_sample_ratio"), "config.mask_point_sample_ratio", low=1)
    names = ["pred_masks", *("outputs_masks" for _ in layers[2:]), "enc_outputs_masks"]
    layers = [inputs.with_masks(layer, name) for layer, name in zip(layers, names, strict=True)]
    points = Points([_plan(layer, ratio) for layer in layers], seed, given)
    weights = CostWeights(*(detr.coefficient(config, name) for name in _WEIGHTS.values()))
    return [point_terms.with_points(layer, number, points, KIND, weights) for number, layer in enumerate(layers)]


def _plan(layer: Layer, ratio: int) -> Plan:
    height, width = layer.tensors["pred_masks"].value.shape[-2:]
    whole = max(height, height * width // ratio)
    uncertain = 3 * whole // 4
    return Plan(max(1, height * width // ratio), OVERSAMPLE * whole, uncertain, whole - uncertain)
