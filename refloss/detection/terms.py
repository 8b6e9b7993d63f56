"""The terms of DETR-like losses, composed of the losses' kernels: classes, boxes, masks, and a count for the log."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from refloss.detection.engine import Background, Layer, Outcome, Scene, Tensor, Term
from refloss.kernels.boxes.loop import Distances
from refloss.kernels.boxes.run import compare as compare_boxes
from refloss.kernels.masks.run import compare as compare_masks
from refloss.kernels.matching.run import counts
from refloss.kernels.one_class.loop import NONE, Focus, OneClassLoop
from refloss.kernels.one_class.run import one_class_loss, positives_of
from refloss.losses import cross_entropy
from refloss.losses.parts import boxes as box_losses
from refloss.losses.parts import mask_focal
from refloss.losses.parts.softmax import softmax_rows
from refloss.losses.sigmoid_focal import ONE_CLASS_LOOP
from refloss.numerics.exact import Exact, exact, quotient, quotient_pair, total
from refloss.options import Options
from refloss.result import Intermediates, LossResult
from refloss.typing import Backend

_OVERLAPS = "overlaps"
Pair = tuple[float, float]


def labels_of_queries(scene: Scene, background: int) -> np.ndarray:
    """[B, Q] the class that each query should see, the background where it stands for no object."""
    labels = np.full((len(scene.targets.counts), scene.queries), background, np.int64)
    labels[scene.matching.image, scene.matching.query] = scene.targets.labels[scene.objects]
    return labels


def softmax_classes(num_labels: int, no_object_weight: float, component: str = "loss_ce") -> Term:
    """Cross-entropy over the classes and one for no object, which has a weight of its own; a weighted mean.

    The matching decides about few queries: all are told that they see no object first, and some are then corrected.
    """

    def rows(logits: Tensor, labels: np.ndarray, cotangent: float, backend: Backend) -> LossResult:
        return softmax_rows(
            cross_entropy.LOOP,
            logits.value,
            labels,
            Options(cotangent, grad=logits.gradient is not None, out=logits.gradient, backend=backend),
            class_axis=logits.value.ndim - 1,
            weight=np.append(np.ones(num_labels), no_object_weight),
            reduction="none",
        )

    def before(layer: Layer, pairs: int, cotangents: Mapping[str, Exact], backend: Backend) -> Background:
        logits = layer.tensors["logits"].wanted(cotangents[component] != 0.0)
        no_object = np.full(logits.value.shape[:2], num_labels)
        normaliser = pairs + (no_object.size - pairs) * no_object_weight
        cotangent = quotient(cotangents[component], exact(normaliser))
        result = rows(logits, no_object, cotangent, backend)
        return Background(np.asarray(result.loss), result.intermediates["lse"], normaliser)

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        background = scene.background
        assert background is not None
        matched_queries = (scene.matching.image, scene.matching.query)
        logits = scene.layer.tensors["logits"].wanted(cotangents[component] != 0.0)
        matched_logits = Tensor(
            logits.value[matched_queries], None if logits.gradient is None else logits.gradient[matched_queries]
        )
        cotangent = quotient(cotangents[component], exact(background.normaliser))
        result = rows(matched_logits, scene.targets.labels[scene.objects], cotangent, scene.backend)
        if logits.gradient is not None:
            logits.gradient[matched_queries] = matched_logits.gradient
        background.losses[matched_queries] = result.loss
        loss = total(background.losses, background.normaliser)
        return Outcome({component: loss}, Intermediates({"lse": background.lse}))

    return Term((component,), compute, before)


def focal_classes(num_labels: int, alpha: float) -> Term:
    """Sigmoid focal loss with γ = 2 of every class; the sum over num_boxes."""

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        logits = scene.layer.tensors["logits"].wanted(cotangents["loss_ce"] != 0.0)
        # transformers marks a query without an object by class num_labels, and drops the class after the last.
        background = num_labels if num_labels < logits.value.shape[2] else NONE
        focus = Focus(1.0, 1.0, 2.0) if alpha < 0.0 else Focus(alpha, 1.0 - alpha, 2.0)
        loss = one_class_loss(
            ONE_CLASS_LOOP,
            *logits,
            positives_of(labels_of_queries(scene, background)),
            focus,
            cotangent=cotangents["loss_ce"],
            divisor=scene.num_boxes,
            backend=scene.backend,
        )
        return Outcome({"loss_ce": loss}, Intermediates())

    return Term(("loss_ce",), compute)


def quality_classes(component: str, loop: OneClassLoop, focus: Focus) -> Term:
    """A sigmoid loss of every class in which the IoU of a query's box matters; the sum over num_boxes."""

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        logits = scene.layer.tensors["logits"].wanted(cotangents[component] != 0.0)
        distances = overlaps(scene)
        qualities = np.zeros((2, len(scene.targets.counts) * scene.queries))
        qualities[:, scene.rows] = distances.iou, distances.iou_low
        loss = one_class_loss(
            loop,
            *logits,
            positives_of(labels_of_queries(scene, NONE), *qualities),
            focus,
            cotangent=cotangents[component],
            divisor=scene.num_boxes,
            backend=scene.backend,
        )
        return Outcome({component: loss}, Intermediates())

    return Term((component,), compute)


def boxes(*, of_union: bool = False) -> Term:
    """L1 distance and 1 − GIoU of the matched boxes; sums over num_boxes."""

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        names = ("loss_bbox", "loss_giou")
        predicted = scene.layer.tensors["pred_boxes"].wanted(any(cotangents[name] != 0.0 for name in names))
        of_l1, of_giou = (quotient_pair(cotangents[name], exact(scene.num_boxes)) for name in names)
        distances = _compared(scene, predicted, of_l1, of_giou)
        scene.shared[_OVERLAPS] = distances
        return Outcome(
            {
                "loss_bbox": mean(distances.l1, scene),
                "loss_giou": mean(distances.giou_loss, scene),
            },
            Intermediates({"iou": distances.iou, "giou": distances.giou}),
        )

    return Term(("loss_bbox", "loss_giou"), compute, of_union=of_union)


def overlaps(scene: Scene) -> Distances:
    """L1 distances, IoU and GIoU of the matched boxes."""
    if _OVERLAPS not in scene.shared:
        predicted = scene.layer.tensors["pred_boxes"].wanted(False)
        scene.shared[_OVERLAPS] = _compared(scene, predicted, (0.0, 0.0), (0.0, 0.0))
    distances: Distances = scene.shared[_OVERLAPS]
    return distances


def _compared(scene: Scene, predicted: Tensor, of_l1: Pair, of_giou: Pair) -> Distances:
    return compare_boxes(
        box_losses.LOOP,
        *predicted,
        scene.rows,
        scene.targets.boxes[scene.objects],
        np.array([[of_l1, (0.0, 0.0), of_giou]]),
        centered=True,
        backend=scene.backend,
    )


def mean(values: np.ndarray, scene: Scene) -> np.float64:
    """Σ values / num_boxes."""
    return total(values, scene.num_boxes)


def cardinality(*, of_softmax: bool) -> Term:
    """How far the number of queries that see an object is off, a mean over images; it has no gradient."""

    def compute(scene: Scene, _: Mapping[str, Exact]) -> Outcome:
        counted = counts(scene.layer.tensors["logits"].value, of_softmax=of_softmax, backend=scene.backend)
        with np.errstate(invalid="ignore"):
            error = np.abs(counted - scene.targets.counts).sum(dtype=np.float64) / np.float64(len(counted))
        return Outcome({"cardinality_error": error}, Intermediates())

    return Term(("cardinality_error",), compute)


def masks() -> Term:
    """Focal loss (α = 1/4, γ = 2, a mean over pixels) and dice loss of upsampled masks; sums over num_boxes."""

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        predicted = scene.layer.tensors["pred_masks"].wanted(any(cotangent != 0.0 for cotangent in cotangents.values()))
        target = _matched_masks(scene)
        pixels = max(1, target[0].size) if len(target) else 1
        losses = compare_masks(
            mask_focal.LOOP,
            *predicted,
            scene.rows,
            target,
            of_focal=quotient_pair(cotangents["loss_mask"], exact(scene.num_boxes) * pixels),
            of_dice=quotient_pair(cotangents["loss_dice"], exact(scene.num_boxes)),
            backend=scene.backend,
        )
        return Outcome(
            {
                "loss_mask": quotient(sum(losses.focal, Fraction(0)), exact(scene.num_boxes) * pixels),
                "loss_dice": mean(losses.dice, scene),
            },
            Intermediates({"dice": losses.dice}),
        )

    return Term(("loss_mask", "loss_dice"), compute)


def _matched_masks(scene: Scene) -> np.ndarray:
    """[M, H, W] the target of each pair, padded with 0 to the largest of all images; uint8 where all are 0 or 1."""
    shape = np.array([mask.shape[1:] for mask in scene.targets.masks], np.int64).reshape(-1, 2).max(axis=0, initial=0)
    chosen = [
        scene.targets.masks[image][number]
        for image, number in zip(scene.matching.image, scene.matching.object, strict=True)
    ]
    result = np.zeros((len(chosen), *shape), np.uint8)
    if not all(_put_whole(mask, result[pair]) for pair, mask in enumerate(chosen)):
        result = np.zeros(result.shape)
        for pair, mask in enumerate(chosen):
            result[pair, : mask.shape[0], : mask.shape[1]] = mask
    return result


def _put_whole(mask: np.ndarray, place: np.ndarray) -> bool:
    """Copy a mask whose elements are 0 or 1, if it is one."""
    ones = mask if mask.dtype.kind in "biu" else mask == 1
    place[: mask.shape[0], : mask.shape[1]] = ones
    return ones is mask or np.count_nonzero(ones) == np.count_nonzero(mask)
