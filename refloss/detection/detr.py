"""What the heads that follow DETR read in the same way from their configuration and arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays
from refloss.configuration import flag, read
from refloss.detection import terms
from refloss.detection.engine import Layer, Term
from refloss.detection.inputs import Inputs, required
from refloss.detection.matching import Matcher


def class_count(config: Any) -> int:
    """num_labels."""
    return arrays.integer(read(config, "num_labels"), "config.num_labels", low=0)


def coefficient(config: Any, name: str, *, low: float | None = None) -> float:
    """A finite number of the configuration."""
    return arrays.number(read(config, name), f"config.{name}", finite=True, low=low)


def matcher(config: Any, kind: str, maps: tuple[np.ndarray, ...] = ()) -> Matcher:
    """Costs of class, L1 and GIoU as the configuration weighs them."""
    of_class, of_bbox, of_giou = (coefficient(config, f"{part}_cost") for part in ("class", "bbox", "giou"))
    return Matcher(kind, of_class, of_bbox, of_giou, maps=maps)


def box_weights(config: Any, of_class: float = 1.0) -> dict[str, float]:
    """Weights of the components of classes and boxes in the total."""
    return {
        "loss_ce": of_class,
        "loss_bbox": coefficient(config, "bbox_loss_coefficient"),
        "loss_giou": coefficient(config, "giou_loss_coefficient"),
    }


def mask_weights(config: Any) -> dict[str, float]:
    """Weights of the components of masks in the total."""
    return {
        "loss_mask": coefficient(config, "mask_loss_coefficient"),
        "loss_dice": coefficient(config, "dice_loss_coefficient"),
    }


def add_predictions(
    inputs: Inputs, logits: Any, pred_boxes: Any, *, classes: int | None = None, minimum: int = 1
) -> dict[str, int]:
    """Take the predictions of the last layer; the sizes of their axes."""
    array = inputs.add("logits", logits, "B", "Q", "C", shape={} if classes is None else {"C": classes})
    sizes = dict(zip("BQC", array.shape, strict=True))
    if sizes["C"] < minimum:
        raise ValueError(f"logits has shape {array.shape}; expected [B, Q, C] with C of at least {minimum}, num_labels")
    inputs.add("pred_boxes", pred_boxes, "B", "Q", "4", shape={"B": sizes["B"], "Q": sizes["Q"], "4": 4})
    return sizes


def auxiliary_layers(
    inputs: Inputs, config: Any, outputs_class: Any, outputs_coord: Any, sizes: dict[str, int]
) -> list[Layer]:
    """The layers before the last; none without auxiliary_loss, when what is given has no effect."""
    given = {"outputs_class": outputs_class, "outputs_coord": outputs_coord}
    if not flag(config, "auxiliary_loss"):
        for name, value in given.items():
            if value is not None:
                inputs.add(name, value)
        return []
    for name, value in given.items():
        required(value, name, "config.auxiliary_loss is set")
    count = len(inputs.add("outputs_class", outputs_class, "L", "B", "Q", "C", shape=sizes))
    shape = {"L": count, "B": sizes["B"], "Q": sizes["Q"], "4": 4}
    inputs.add("outputs_coord", outputs_coord, "L", "B", "Q", "4", shape=shape)
    counted = arrays.integer(read(config, "decoder_layers"), "config.decoder_layers", low=0) - 1
    return [
        inputs.layer(f"_{i}", "outputs_class", "outputs_coord", index=i, counts=i < counted) for i in range(count - 1)
    ]


def last_layer(inputs: Inputs) -> Layer:
    """The layer of logits and pred_boxes."""
    return inputs.layer("", "logits", "pred_boxes")


def encoder_layer(inputs: Inputs, logits: Any, boxes: Any, sizes: dict[str, int]) -> Layer:
    """The encoder's proposals, as many as there are; the size of their axis is noted."""
    given = {"enc_outputs_class": logits, "enc_outputs_coord": boxes}
    for name, value in given.items():
        required(value, name, "they are matched as well")
    shape = {"B": sizes["B"], "C": sizes["C"], "4": 4}
    shape["P"] = inputs.add("enc_outputs_class", logits, "B", "P", "C", shape=shape).shape[1]
    inputs.add("enc_outputs_coord", boxes, "B", "P", "4", shape=shape)
    return inputs.layer("_enc", *given)


def add_masks(inputs: Inputs, name: str, masks: Any, *axes: str, shape: dict[str, int]) -> None:
    """Take masks, which have pixels; axes are those before height and width."""
    array = inputs.add(name, masks, *axes, "h", "w", shape=shape)
    if 0 in array.shape[-2:]:
        raise ValueError(f"{name} has shape {array.shape}; expected masks with pixels")


def mask_layer(inputs: Inputs, pred_masks: Any, sizes: dict[str, int]) -> Layer:
    """The layer of logits, pred_boxes and pred_masks."""
    add_masks(inputs, "pred_masks", pred_masks, "B", "Q", shape={"B": sizes["B"], "Q": sizes["Q"]})
    return inputs.layer("", "logits", "pred_boxes", masks="pred_masks", terms=(terms.masks(),))


def focal_terms(config: Any) -> tuple[Term, ...]:
    """Focal classes, boxes, and a count for the log."""
    return (
        terms.focal_classes(class_count(config), coefficient(config, "focal_alpha")),
        terms.boxes(),
        terms.cardinality(of_softmax=False),
    )
