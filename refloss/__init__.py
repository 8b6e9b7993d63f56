"""The oracle for deep-learning losses: arrays in, the right loss and the right gradients out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refloss.heads.causal_lm import causal_lm
    from refloss.heads.d_fine import d_fine_object_detection
    from refloss.heads.deformable_detr import deformable_detr_object_detection, deformable_detr_segmentation
    from refloss.heads.deimv2 import deimv2_object_detection
    from refloss.heads.grounding_dino import grounding_dino_object_detection
    from refloss.heads.lw_detr import lw_detr_object_detection
    from refloss.heads.mapping import LOSS_MAPPING
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
    from refloss.parallel import get_num_threads, set_num_threads
    from refloss.result import LossResult

__version__ = "0.1.0"

__all__ = [
    "LOSS_MAPPING",
    "LossResult",
    "bce",
    "bce_with_logits",
    "causal_lm",
    "cross_entropy",
    "d_fine_object_detection",
    "deformable_detr_object_detection",
    "deformable_detr_segmentation",
    "deimv2_object_detection",
    "dice",
    "get_num_threads",
    "giou",
    "grounding_dino_object_detection",
    "huber",
    "iou",
    "kl_div",
    "l1",
    "lw_detr_object_detection",
    "masked_lm",
    "mse",
    "nll",
    "object_detection",
    "question_answering",
    "rt_detr_object_detection",
    "segmentation",
    "semantic_segmentation",
    "sequence_classification",
    "set_num_threads",
    "sigmoid_focal",
    "smooth_l1",
    "token_classification",
    "varifocal",
]

# Where each name lives, if not in a module of its own name: losses bring in Numba, so each is imported when first used.
_HEADS = (
    "causal_lm",
    "masked_lm",
    "object_detection",
    "question_answering",
    "segmentation",
    "semantic_segmentation",
    "sequence_classification",
    "token_classification",
)
_HOMES = {
    "deformable_detr_object_detection": "refloss.heads.deformable_detr",
    "deformable_detr_segmentation": "refloss.heads.deformable_detr",
    "grounding_dino_object_detection": "refloss.heads.grounding_dino",
    "LOSS_MAPPING": "refloss.heads.mapping",
    **{f"{name}_object_detection": f"refloss.heads.{name}" for name in ("d_fine", "deimv2", "lw_detr", "rt_detr")},
    "LossResult": "refloss.result",
    "get_num_threads": "refloss.parallel",
    "set_num_threads": "refloss.parallel",
    **{name: f"refloss.heads.{name}" for name in _HEADS},
}


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("refloss.testing")
    if name not in __all__:
        raise AttributeError(f"module 'refloss' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, f"refloss.losses.{name}")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "testing"})
