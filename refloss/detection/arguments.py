"""The arguments that heads which match have in common, for their specifications."""

from __future__ import annotations

from dataclasses import replace

from refloss.specification import CONFIG, Argument, Parameter

LAYERS = ("outputs_class", "outputs_coord")
PROPOSALS = (*LAYERS, "enc_topk_logits", "enc_topk_bboxes")
CORNERS = ("predicted_corners", "initial_reference_points")
ENCODER_OUTPUTS = ("enc_outputs_class", "enc_outputs_coord")
_ENCODER = ("encoder_logits", "encoder_pred_boxes")
_BOXES = ("outputs_coord", "enc_topk_bboxes", "enc_outputs_coord", "encoder_pred_boxes", "initial_reference_points")

PARAMETERS = {**CONFIG, "num_boxes": Parameter(float, (2.5, 0.25))}


def arguments_of(
    *, masks: bool = False, text: bool = False, layers: tuple[str, ...] = LAYERS, noise: bool = False
) -> dict[str, Argument]:
    """The arrays of a head: predictions, objects, and what its kind has beside them."""
    logits = Argument("logits", differentiable=True, class_axis=-1, batched=False)
    boxes = Argument("boxes", differentiable=True, batched=False)
    found = {"logits": logits, "labels": Argument("objects", nested=True, batched=False), "pred_boxes": boxes}
    if masks:
        found["pred_masks"] = Argument("masks", differentiable=True, batched=False)
    if text:
        found["label_maps"] = Argument("masks", nested=True, batched=False)
        found["text_mask"] = Argument("mask", batched=False)
    for name in (*layers, *(_ENCODER if text else ())):
        found[name] = replace(boxes if name in _BOXES else logits, optional=True)
    if noise:
        found["denoising_meta_values"] = Argument("objects", optional=True, nested=True, batched=False)
    return found
