"""What the specifications of heads that match have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.detection.bounds import head_bounds
from refloss.specification import Argument, MatchingHead, Parameter, Part, configured

if TYPE_CHECKING:
    from refloss.cases.source import Case

LAYERS = ("outputs_class", "outputs_coord")
PROPOSALS = (*LAYERS, "enc_topk_logits", "enc_topk_bboxes")
CORNERS = ("predicted_corners", "initial_reference_points")
ENCODER_OUTPUTS = ("enc_outputs_class", "enc_outputs_coord")
# Of layers, before height and width.
_MASKS = {"outputs_masks": "L B Q", "enc_outputs_masks": "B P"}
# D layers in all; N pairs at most.
POINTS = {
    "matcher_points": "D U 2",
    "candidate_points": "D N X 2",
    "random_points": "D N Y 2",
    "points": "D N Z 2",
}
_ENCODER = ("encoder_logits", "encoder_pred_boxes")
_BOXES = ("outputs_coord", "enc_topk_bboxes", "enc_outputs_coord", "encoder_pred_boxes", "initial_reference_points")

_OBJECTS = {"class_labels": Part("n", ("integer",)), "boxes": Part("n 4")}
_DENOISING = {
    "dn_positive_idx": [Part("p", ("integer",))],
    "dn_num_group": Part("", ("integer",)),
    "dn_num_split": Part("2", ("integer",)),
}
# What a head reads of its configuration.
DETR = (
    *("num_labels", "class_cost", "bbox_cost", "giou_cost", "bbox_loss_coefficient", "giou_loss_coefficient"),
    *("auxiliary_loss", "decoder_layers"),
)
OF_MASKS = ("mask_loss_coefficient", "dice_loss_coefficient")
RT_DETR = (
    *("num_labels", "matcher_class_cost", "matcher_bbox_cost", "matcher_giou_cost", "matcher_alpha", "matcher_gamma"),
    *("use_focal_loss", "focal_loss_gamma", "weight_loss_bbox", "weight_loss_giou", "auxiliary_loss"),
)
OF_EDGES = ("max_num_bins", "reg_scale", "up", "weight_loss_fgl", "weight_loss_ddf")


def mistaken_points(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """What points are taken for: the other way round, or between the centres of a mask's corner pixels."""
    points = {name: case.inputs[name] for name in POINTS if name in case.inputs}
    masks = next(case.inputs[name] for name in ("pred_masks", "masks_queries_logits") if name in case.inputs)
    size = np.array(masks.shape[:-3:-1])
    return {
        "y of points before x": {name: value[..., ::-1] for name, value in points.items()},
        "points between the centres of corners": {
            name: ((value * (size - 1) + 0.5) / size).astype(value.dtype) for name, value in points.items()
        },
    }


def matching_head(
    *,
    masks: bool = False,
    text: bool = False,
    layers: tuple[str, ...] = LAYERS,
    noise: bool = False,
    points: Mapping[str, str] | None = None,
    config: tuple[str, ...],
    **facts: Any,
) -> MatchingHead:
    """The specification of a head: whether it has masks, texts, arguments for layers, queries that denoise, and others.

    points are the arguments for points, with their shapes, if masks are looked at in some. config are the entries that
    it reads. The other facts are those of refloss.specification.MatchingHead.
    """
    symbol = "T" if text else "K+1" if facts["classes"] == "cross-entropy" else "K"
    arguments = _arguments(symbol, masks=masks, text=text, layers=layers, noise=noise)
    arguments |= {
        name: Argument("points", optional=True, batched=False, shape=shape) for name, shape in (points or {}).items()
    }
    parameters = {**configured(*config), "num_boxes": Parameter(float, (2.5, 0.25))}
    intermediates = (*MatchingHead.intermediates, *(["dice"] if masks else []), *facts.pop("intermediates", ()))
    if points:
        parameters["seed"] = Parameter(int, (1, 12))
        intermediates += ("points", "matcher_points")
        facts["mistakes"] = mistaken_points
    return MatchingHead(
        arguments=arguments, parameters=parameters, bounds=head_bounds, intermediates=intermediates, **facts
    )


def _arguments(
    symbol: str, *, masks: bool = False, text: bool = False, layers: tuple[str, ...] = LAYERS, noise: bool = False
) -> dict[str, Argument]:
    """The arrays of a head: predictions, objects, and what its kind has beside them; symbol is the axis of classes."""
    logits = Argument("logits", differentiable=True, class_axis=-1, batched=False)
    boxes = Argument("boxes", differentiable=True, batched=False)
    objects = [_OBJECTS | ({"masks": Part("n H W", ("bool", "integer", "float"))} if masks else {})]
    arguments = {
        "logits": replace(logits, shape=f"B Q {symbol}"),
        "labels": Argument("objects", nested=True, batched=False, parts=objects),
        "pred_boxes": replace(boxes, shape="B Q 4"),
    }
    if masks:
        arguments["pred_masks"] = Argument("masks", differentiable=True, batched=False, shape="B Q h w")
    if text:
        maps = [Part(f"K {symbol}", ("bool", "integer", "float"))]
        arguments["label_maps"] = Argument("masks", nested=True, batched=False, parts=maps)
        arguments["text_mask"] = Argument("mask", batched=False, shape=f"B Q {symbol}", broadcast=True)
    for name in (*layers, *(_ENCODER if text else ())):
        if name in _MASKS:
            shape = f"{_MASKS[name]} h w"
            arguments[name] = Argument("masks", differentiable=True, optional=True, batched=False, shape=shape)
            continue
        # RT-DETR and what follows it stack layers behind images, DETR before.
        axes = ("B L Q" if noise else "L B Q") if name in (*LAYERS, *CORNERS) else "B P"
        last = "4" if name in _BOXES else "4(R+1)" if name in CORNERS else symbol
        arguments[name] = replace(boxes if name in _BOXES else logits, optional=True, shape=f"{axes} {last}")
    if noise:
        arguments["denoising_meta_values"] = Argument(
            "objects", optional=True, nested=True, batched=False, parts=_DENOISING
        )
    return arguments
