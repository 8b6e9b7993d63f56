# Written by python -m tests.tables.
from refloss import testing as testing
from refloss import typing as typing
from refloss.heads.causal_lm import causal_lm as causal_lm
from refloss.heads.ctc_of_logits import ctc_of_logits as ctc_of_logits
from refloss.heads.d_fine_object_detection import d_fine_object_detection as d_fine_object_detection
from refloss.heads.deformable_detr_object_detection import deformable_detr_object_detection as deformable_detr_object_detection
from refloss.heads.deformable_detr_segmentation import deformable_detr_segmentation as deformable_detr_segmentation
from refloss.heads.deimv2_object_detection import deimv2_object_detection as deimv2_object_detection
from refloss.heads.grounding_dino_object_detection import grounding_dino_object_detection as grounding_dino_object_detection
from refloss.heads.lw_detr_object_detection import lw_detr_object_detection as lw_detr_object_detection
from refloss.heads.mask2former import mask2former as mask2former
from refloss.heads.masked_lm import masked_lm as masked_lm
from refloss.heads.object_detection import object_detection as object_detection
from refloss.heads.parts.row_shards import shards as shards
from refloss.heads.pocket_tts import pocket_tts as pocket_tts
from refloss.heads.question_answering import question_answering as question_answering
from refloss.heads.rf_detr_instance_segmentation import rf_detr_instance_segmentation as rf_detr_instance_segmentation
from refloss.heads.rnnt import rnnt as rnnt
from refloss.heads.rt_detr_object_detection import rt_detr_object_detection as rt_detr_object_detection
from refloss.heads.segmentation import segmentation as segmentation
from refloss.heads.semantic_segmentation import semantic_segmentation as semantic_segmentation
from refloss.heads.sequence_classification import sequence_classification as sequence_classification
from refloss.heads.tdt import tdt as tdt
from refloss.heads.token_classification import token_classification as token_classification
from refloss.losses.bce import bce as bce
from refloss.losses.bce_with_logits import bce_with_logits as bce_with_logits
from refloss.losses.cosine_embedding import cosine_embedding as cosine_embedding
from refloss.losses.cross_entropy import cross_entropy as cross_entropy
from refloss.losses.ctc import ctc as ctc
from refloss.losses.dice import dice as dice
from refloss.losses.distillation import distillation as distillation
from refloss.losses.gaussian_nll import gaussian_nll as gaussian_nll
from refloss.losses.giou import giou as giou
from refloss.losses.hinge_embedding import hinge_embedding as hinge_embedding
from refloss.losses.huber import huber as huber
from refloss.losses.info_nce import info_nce as info_nce
from refloss.losses.iou import iou as iou
from refloss.losses.kl_div import kl_div as kl_div
from refloss.losses.kto import kto as kto
from refloss.losses.l1 import l1 as l1
from refloss.losses.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
from refloss.losses.linear_selected_log_probs import linear_selected_log_probs as linear_selected_log_probs
from refloss.losses.margin_ranking import margin_ranking as margin_ranking
from refloss.losses.moe_load_balancing import moe_load_balancing as moe_load_balancing
from refloss.losses.mse import mse as mse
from refloss.losses.multi_margin import multi_margin as multi_margin
from refloss.losses.multilabel_margin import multilabel_margin as multilabel_margin
from refloss.losses.multilabel_soft_margin import multilabel_soft_margin as multilabel_soft_margin
from refloss.losses.nll import nll as nll
from refloss.losses.parts.policy_presets import POLICY_PRESETS as POLICY_PRESETS
from refloss.losses.poisson_nll import poisson_nll as poisson_nll
from refloss.losses.policy_loss import policy_loss as policy_loss
from refloss.losses.preference_loss import preference_loss as preference_loss
from refloss.losses.router_z_loss import router_z_loss as router_z_loss
from refloss.losses.selected_log_probs import selected_log_probs as selected_log_probs
from refloss.losses.sigmoid_contrastive import sigmoid_contrastive as sigmoid_contrastive
from refloss.losses.sigmoid_focal import sigmoid_focal as sigmoid_focal
from refloss.losses.smooth_l1 import smooth_l1 as smooth_l1
from refloss.losses.soft_margin import soft_margin as soft_margin
from refloss.losses.topk_distillation import topk_distillation as topk_distillation
from refloss.losses.triplet_margin import triplet_margin as triplet_margin
from refloss.losses.value_loss import value_loss as value_loss
from refloss.losses.varifocal import varifocal as varifocal
from refloss.losses.vocab_parallel_cross_entropy import vocab_parallel_cross_entropy as vocab_parallel_cross_entropy
from refloss.mapping import LOSS_MAPPING as LOSS_MAPPING
from refloss.parallel import get_num_threads as get_num_threads
from refloss.parallel import set_num_threads as set_num_threads
from refloss.result import LossResult as LossResult

__version__: str
__all__ = [
    "LOSS_MAPPING",
    "LossResult",
    "POLICY_PRESETS",
    "bce",
    "bce_with_logits",
    "causal_lm",
    "cosine_embedding",
    "cross_entropy",
    "ctc",
    "ctc_of_logits",
    "d_fine_object_detection",
    "deformable_detr_object_detection",
    "deformable_detr_segmentation",
    "deimv2_object_detection",
    "dice",
    "distillation",
    "gaussian_nll",
    "get_num_threads",
    "giou",
    "grounding_dino_object_detection",
    "hinge_embedding",
    "huber",
    "info_nce",
    "iou",
    "kl_div",
    "kto",
    "l1",
    "linear_cross_entropy",
    "linear_selected_log_probs",
    "lw_detr_object_detection",
    "margin_ranking",
    "mask2former",
    "masked_lm",
    "moe_load_balancing",
    "mse",
    "multi_margin",
    "multilabel_margin",
    "multilabel_soft_margin",
    "nll",
    "object_detection",
    "pocket_tts",
    "poisson_nll",
    "policy_loss",
    "preference_loss",
    "question_answering",
    "rf_detr_instance_segmentation",
    "rnnt",
    "router_z_loss",
    "rt_detr_object_detection",
    "segmentation",
    "selected_log_probs",
    "semantic_segmentation",
    "sequence_classification",
    "set_num_threads",
    "shards",
    "sigmoid_contrastive",
    "sigmoid_focal",
    "smooth_l1",
    "soft_margin",
    "tdt",
    "token_classification",
    "topk_distillation",
    "triplet_margin",
    "value_loss",
    "varifocal",
    "vocab_parallel_cross_entropy",
]
