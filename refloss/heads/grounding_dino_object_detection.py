"""Object detection as in Grounding DINO: classes are spans of a text's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from refloss import arrays
from refloss.cases import drawn_scenes, scenes
from refloss.configuration import flag
from refloss.detection import detr, engine, terms
from refloss.detection.engine import Head, Layer, Options, Outcome, Scene, Term
from refloss.detection.inputs import Inputs, required
from refloss.detection.specification import DETR, matching_head
from refloss.detection.targets import read_targets
from refloss.loss import loss
from refloss.losses.sigmoid_focal import sigmoid_focal
from refloss.numerics.exact import Exact, rounded
from refloss.result import Intermediates, LossResult
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

CLASS_WEIGHT = 2.0


@loss(
    matching_head(
        text=True,
        classes="focal",
        config=(*DETR[1:], "focal_alpha", "two_stage"),
        components=("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"),
        keys=("GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection"),
        order=240,
        follows="transformers' GroundingDinoForObjectDetectionLoss",
        cases=partial(scenes.detr_cases, seed=80, classes=8, text=True),
        draw=drawn_scenes.grounding_dino,
    )
)
def grounding_dino_object_detection(
    logits: ArrayLike,
    labels: Objects,
    pred_boxes: ArrayLike,
    config: Configuration,
    label_maps: ArrayLike,
    text_mask: ArrayLike,
    outputs_class: ArrayLike | None = None,
    outputs_coord: ArrayLike | None = None,
    encoder_logits: ArrayLike | None = None,
    encoder_pred_boxes: ArrayLike | None = None,
    *,
    grad_output: Cotangents = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    assignment: Assignment | None = None,
    num_boxes: Scalar | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Matching over text tokens, focal tokens and boxes, as transformers' GroundingDinoForObjectDetectionLoss.

    As refloss.deformable_detr_object_detection, with tokens j of a text in the place of classes:

    - loss_ce: the sigmoid focal loss (α = focal_alpha, γ = 2) of every query and every token in text_mask, a matched
      query's targets being its object's label map; the sum over num_boxes; its weight in the total is 2
    - the class cost of an object: Σ_j m_j·f(x_j) with its label map m scaled to sum to 1, f as there (α = 1/4)
    - with config.two_stage, the encoder's proposals as one more layer, whose components end in "_enc"

    The target of image i > 0 is row label + K_i of all label maps joined, K_i being the number of its own classes. That
    is its own row for the second image (if it has as many classes as the first), and another's from the third on: so it
    is in transformers, and so it is here; the cost uses the right rows. See docs/divergences.md.
    Held constant: the matching, num_boxes.

    Args:
        logits: [B, Q, T] for tokens T; −inf where there is no token is fine outside of text_mask.
        label_maps: for each image [K_i, T], 1 for the tokens of a class; what follows the decimal point is cut off.
        text_mask: bool, broadcast to [B, Q, T]: the tokens that count.
        encoder_logits, encoder_pred_boxes: [B, P, T] and [B, P, 4]. Required by config.two_stage, else without effect.
        config: as there, with two_stage, without num_labels: an image has the classes of its label map.
        The others are as in refloss.object_detection.

    Returns:
        As refloss.object_detection, without "lse"; the encoder's layer comes last. grads: also "encoder_logits" and
        "encoder_pred_boxes" where given.

    Edges:
        As refloss.object_detection.

    Raises:
        As refloss.object_detection, also for a target's row that does not exist, and for label maps with other numbers
        than 0 and 1.
    """
    inputs = Inputs(grad=grad, grad_dtype=grad_dtype)
    sizes = detr.add_predictions(inputs, logits, pred_boxes)
    layers = [detr.last_layer(inputs), *detr.auxiliary_layers(inputs, config, outputs_class, outputs_coord, sizes)]
    layers += _encoder_layer(inputs, config, encoder_logits, encoder_pred_boxes, sizes)
    maps = _read_maps(label_maps, sizes)
    targets = read_targets(labels, sizes["B"], [len(label_map) for label_map in maps])
    mask = _real(text_mask, "text_mask").astype(bool)
    head = Head(
        matcher=detr.matcher(config, "label_maps", maps),
        terms=(
            _token_classes(maps, mask, detr.coefficient(config, "focal_alpha")),
            terms.boxes(),
            terms.cardinality(of_softmax=False),
        ),
        weights=detr.box_weights(config, CLASS_WEIGHT),
    )
    options = Options(grad_output, assignment, num_boxes, backend)
    return engine.run(head, layers, targets, inputs, options)


def _encoder_layer(
    inputs: Inputs, config: Any, encoder_logits: Any, encoder_pred_boxes: Any, sizes: Mapping[str, int]
) -> list[Layer]:
    """The encoder's proposals; no layer without two_stage, when what is given has no effect."""
    given = {"encoder_logits": encoder_logits, "encoder_pred_boxes": encoder_pred_boxes}
    if not flag(config, "two_stage"):
        for name, value in given.items():
            if value is not None:
                inputs.add(name, value)
        return []
    for name, value in given.items():
        required(value, name, "config.two_stage is set")
    shape = {"B": sizes["B"], "T": sizes["C"]}
    proposals = inputs.add("encoder_logits", encoder_logits, "B", "P", "T", shape=shape).shape[1]
    inputs.add("encoder_pred_boxes", encoder_pred_boxes, "B", "P", "4", shape={"B": sizes["B"], "P": proposals, "4": 4})
    return [inputs.layer("_enc", *given)]


def _real(value: Any, name: str) -> np.ndarray:
    """An array of bools or numbers."""
    array = arrays.as_array(value, name)
    if array.dtype.kind != "b" and not arrays.is_real(array):
        raise TypeError(f"{name} has dtype {array.dtype}; expected bools or real numbers")
    return array


def _read_maps(label_maps: Any, sizes: Mapping[str, int]) -> tuple[np.ndarray, ...]:
    given = arrays.entries(label_maps, "label_maps", "a list with an array for each image")
    maps = tuple(_real(label_map, f"label_maps[{i}]").astype(np.float64) for i, label_map in enumerate(given))
    if len(maps) != sizes["B"]:
        raise ValueError(f"label_maps has {len(maps)} entries; expected one for each of {sizes['B']} images")
    for i, label_map in enumerate(maps):
        if label_map.ndim != 2 or label_map.shape[1] != sizes["C"]:
            raise ValueError(
                f"label_maps[{i}] has shape {label_map.shape}; expected [K, {sizes['C']}], a row for each class"
            )
        if not np.isin(np.trunc(label_map), (0.0, 1.0)).all():
            raise ValueError(f"label_maps[{i}] has other numbers than 0 and 1")
    return maps


def _target_rows(scene: Scene, maps: tuple[np.ndarray, ...]) -> np.ndarray:
    """Of every pair its row of all label maps joined, with transformers' offsets."""
    offsets = np.array([0, *(len(each) for each in maps[1:])], np.int64)
    rows = scene.targets.labels[scene.objects] + offsets[scene.matching.image]
    total = sum(len(each) for each in maps)
    wrong = np.flatnonzero(rows >= total)
    if wrong.size:
        image, number = scene.matching.image[wrong[0]], scene.matching.object[wrong[0]]
        raise ValueError(
            f'labels[{image}]["class_labels"][{number}] takes row {rows[wrong[0]]} of {total} of all label maps joined:'
            f" transformers' offset, {offsets[image]} here, is wrong, and an error there too"
        )
    return np.asarray(rows)


def _token_classes(maps: tuple[np.ndarray, ...], mask: np.ndarray, alpha: float) -> Term:
    """Sigmoid focal loss with γ = 2 of every token that counts; the sum over num_boxes."""

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        cotangent = rounded(cotangents["loss_ce"])
        logits = scene.layer.tensors["logits"].wanted(cotangent != 0.0)
        counted = _broadcast(mask, logits.value.shape)
        target = np.zeros(logits.value.shape)
        if maps:
            joined = np.trunc(np.concatenate(maps))
            target[scene.matching.image, scene.matching.query] = joined[_target_rows(scene, maps)]
        result = sigmoid_focal(
            logits.value[counted],
            target[counted],
            scene.num_boxes,
            alpha,
            reduction="sum",
            grad_output=cotangent,
            grad=[] if logits.gradient is None else "inputs",
            grad_dtype=None if logits.gradient is None else logits.gradient.dtype,
            backend=scene.backend,
        )
        if logits.gradient is not None:
            logits.gradient[counted] = result.grads["inputs"]
        return Outcome({"loss_ce": result.loss}, Intermediates())

    return Term(("loss_ce",), compute)


def _broadcast(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"text_mask has shape {mask.shape}; expected one that broadcasts to {shape}") from None
