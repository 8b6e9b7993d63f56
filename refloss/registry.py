"""Every loss and head by name: what the command line and the golden files know of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from refloss.heads.causal_lm import causal_lm
from refloss.heads.d_fine import d_fine_object_detection
from refloss.heads.deformable_detr import deformable_detr_object_detection, deformable_detr_segmentation
from refloss.heads.deimv2 import deimv2_object_detection
from refloss.heads.grounding_dino import grounding_dino_object_detection
from refloss.heads.lw_detr import lw_detr_object_detection
from refloss.heads.masked_lm import masked_lm
from refloss.heads.object_detection import object_detection
from refloss.heads.question_answering import question_answering
from refloss.heads.rt_detr import rt_detr_object_detection
from refloss.heads.segmentation import segmentation
from refloss.heads.semantic_segmentation import semantic_segmentation
from refloss.heads.sequence_classification import sequence_classification
from refloss.heads.token_classification import token_classification
from refloss.losses.bce import bce
from refloss.losses.bce_with_logits import bce_with_logits
from refloss.losses.cross_entropy import cross_entropy
from refloss.losses.dice import dice
from refloss.losses.giou import giou
from refloss.losses.huber import huber
from refloss.losses.iou import iou
from refloss.losses.kl_div import kl_div
from refloss.losses.l1 import l1
from refloss.losses.mse import mse
from refloss.losses.nll import nll
from refloss.losses.sigmoid_focal import sigmoid_focal
from refloss.losses.smooth_l1 import smooth_l1
from refloss.losses.varifocal import varifocal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Function(NamedTuple):
    """A public function: its array arguments, which of them have gradients, and its other arguments by type."""

    call: Callable[..., Any]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    differentiable: tuple[str, ...]
    parameters: Mapping[str, type]
    counts_tokens: bool = False
    nested: tuple[str, ...] = ()  # arguments that are lists of arrays, or of mappings to arrays

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.call.__doc__ or "").partition("\n")[0]


_ELEMENTS = ("input", "target")
_REDUCTION: dict[str, type] = {"reduction": str}
_ITEMS: dict[str, type] = {"num_items_in_batch": float}
_TOKENS: dict[str, type] = {"vocab_size": int, **_ITEMS, "ignore_index": int}
_BOXES = ("boxes1", "boxes2")
_BOX_OPTIONS: dict[str, type] = {"box_format": str, **_REDUCTION}
_LAYERS = ("outputs_class", "outputs_coord")
_ENCODER = ("encoder_logits", "encoder_pred_boxes")
_PROPOSALS = (*_LAYERS, "enc_topk_logits", "enc_topk_bboxes")
_CORNERS = ("predicted_corners", "initial_reference_points")
_MATCHED: dict[str, type] = {"config": dict, "num_boxes": float}


def _detection(
    call: Callable[..., Any],
    *,
    masks: bool = False,
    text: bool = False,
    layers: tuple[str, ...] = _LAYERS,
    noise: bool = False,
) -> Function:
    required = ("logits", "labels", "pred_boxes", *(("pred_masks",) if masks else ()))
    maps = ("label_maps",) if text else ()
    optional = (*layers, *(_ENCODER if text else ()))
    queries = ("denoising_meta_values",) if noise else ()
    return Function(
        call,
        (*required, *maps, *(("text_mask",) if text else ())),
        (*optional, *queries),
        (*(name for name in required if name != "labels"), *optional),
        _MATCHED,
        nested=("labels", *maps, *queries),
    )


_DETECTION = {
    "object_detection": _detection(object_detection),
    "segmentation": _detection(segmentation, masks=True),
    "deformable_detr_object_detection": _detection(deformable_detr_object_detection),
    "deformable_detr_segmentation": _detection(deformable_detr_segmentation, masks=True),
    "grounding_dino_object_detection": _detection(grounding_dino_object_detection, text=True),
    "rt_detr_object_detection": _detection(rt_detr_object_detection, layers=_PROPOSALS, noise=True),
    "d_fine_object_detection": _detection(d_fine_object_detection, layers=(*_PROPOSALS, *_CORNERS), noise=True),
    "deimv2_object_detection": _detection(deimv2_object_detection, layers=(*_PROPOSALS, *_CORNERS), noise=True),
    "lw_detr_object_detection": _detection(
        lw_detr_object_detection, layers=(*_LAYERS, "enc_outputs_class", "enc_outputs_coord")
    ),
}

FUNCTIONS: dict[str, Function] = {
    "mse": Function(mse, _ELEMENTS, ("weight",), (*_ELEMENTS, "weight"), _REDUCTION),
    "l1": Function(l1, _ELEMENTS, ("weight",), (*_ELEMENTS, "weight"), _REDUCTION),
    "smooth_l1": Function(smooth_l1, _ELEMENTS, (), _ELEMENTS, {**_REDUCTION, "beta": float}),
    "huber": Function(huber, _ELEMENTS, ("weight",), (*_ELEMENTS, "weight"), {**_REDUCTION, "delta": float}),
    "bce": Function(bce, _ELEMENTS, ("weight",), _ELEMENTS, _REDUCTION),
    "bce_with_logits": Function(
        bce_with_logits, ("logits", "target"), ("weight", "pos_weight"), ("logits", "target"), _REDUCTION
    ),
    "kl_div": Function(kl_div, _ELEMENTS, (), _ELEMENTS, {**_REDUCTION, "log_target": bool}),
    "sigmoid_focal": Function(
        sigmoid_focal,
        ("inputs", "targets"),
        (),
        ("inputs", "targets"),
        {"num_boxes": float, "alpha": float, "gamma": float, **_REDUCTION},
    ),
    "varifocal": Function(
        varifocal,
        ("inputs", "targets"),
        (),
        ("inputs",),
        {"num_boxes": float, "alpha": float, "gamma": float, **_REDUCTION},
    ),
    "dice": Function(dice, ("inputs", "targets"), (), ("inputs", "targets"), {"num_boxes": float, **_REDUCTION}),
    "iou": Function(iou, _BOXES, (), _BOXES, _BOX_OPTIONS),
    "giou": Function(giou, _BOXES, (), _BOXES, _BOX_OPTIONS),
    "nll": Function(nll, _ELEMENTS, ("weight",), ("input",), {"ignore_index": int, **_REDUCTION}),
    "cross_entropy": Function(
        cross_entropy,
        ("logits", "target"),
        ("weight",),
        ("logits", "target"),
        {"ignore_index": int, **_REDUCTION, "label_smoothing": float},
    ),
    "causal_lm": Function(causal_lm, ("logits", "labels"), ("shift_labels",), ("logits",), _TOKENS, counts_tokens=True),
    "masked_lm": Function(masked_lm, ("logits", "labels"), (), ("logits",), _TOKENS, counts_tokens=True),
    "token_classification": Function(
        token_classification, ("logits", "labels"), (), ("logits",), {"num_labels": int, **_ITEMS, "ignore_index": int}
    ),
    "sequence_classification": Function(
        sequence_classification,
        ("pooled_logits", "labels"),
        (),
        ("pooled_logits",),
        {"num_labels": int, "problem_type": str, **_ITEMS, "ignore_index": int},
    ),
    "question_answering": Function(
        question_answering,
        ("start_logits", "end_logits", "start_positions", "end_positions"),
        (),
        ("start_logits", "end_logits"),
        _ITEMS,
    ),
    **_DETECTION,
    "semantic_segmentation": Function(
        semantic_segmentation,
        ("logits", "labels"),
        ("auxiliary_logits",),
        ("logits", "auxiliary_logits"),
        {"ignore_index": int, **_ITEMS, "auxiliary_loss_weight": float},
    ),
}
