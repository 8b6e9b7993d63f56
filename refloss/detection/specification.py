"""What the specifications of heads that match have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from refloss.detection.bounds import head_bounds
from refloss.specification import CONFIG, Argument, MatchingHead, Parameter

LAYERS = ("outputs_class", "outputs_coord")
PROPOSALS = (*LAYERS, "enc_topk_logits", "enc_topk_bboxes")
CORNERS = ("predicted_corners", "initial_reference_points")
ENCODER_OUTPUTS = ("enc_outputs_class", "enc_outputs_coord")
_ENCODER = ("encoder_logits", "encoder_pred_boxes")
_BOXES = ("outputs_coord", "enc_topk_bboxes", "enc_outputs_coord", "encoder_pred_boxes", "initial_reference_points")

_PARAMETERS = {**CONFIG, "num_boxes": Parameter(float, (2.5, 0.25))}


def matching_head(
    *,
    masks: bool = False,
    text: bool = False,
    layers: tuple[str, ...] = LAYERS,
    noise: bool = False,
    **facts: Any,
) -> MatchingHead:
    """The specification of a head: whether it has masks, texts, arguments for layers, queries that denoise, and others.

    The other facts are those of refloss.specification.MatchingHead.
    """
    arguments = _arguments(masks=masks, text=text, layers=layers, noise=noise)
    return MatchingHead(arguments=arguments, parameters=_PARAMETERS, bounds=head_bounds, **facts)


def _arguments(
    *, masks: bool = False, text: bool = False, layers: tuple[str, ...] = LAYERS, noise: bool = False
) -> dict[str, Argument]:
    """The arrays of a head: predictions, objects, and what its kind has beside them."""
    logits = Argument("logits", differentiable=True, class_axis=-1, batched=False)
    boxes = Argument("boxes", differentiable=True, batched=False)
    arguments = {"logits": logits, "labels": Argument("objects", nested=True, batched=False), "pred_boxes": boxes}
    if masks:
        arguments["pred_masks"] = Argument("masks", differentiable=True, batched=False)
    if text:
        arguments["label_maps"] = Argument("masks", nested=True, batched=False)
        arguments["text_mask"] = Argument("mask", batched=False)
    for name in (*layers, *(_ENCODER if text else ())):
        arguments[name] = replace(boxes if name in _BOXES else logits, optional=True)
    if noise:
        arguments["denoising_meta_values"] = Argument("objects", optional=True, nested=True, batched=False)
    return arguments
