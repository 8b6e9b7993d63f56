"""The honest kernel of every function that has one here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gauntlet.alignments import Ctc
from tests.gauntlet.contrastive import InfoNce, SigmoidContrastive
from tests.gauntlet.elements import L1, Bce, BceWithLogits, Focal, Huber, KlDiv, Mse, SmoothL1, Varifocal
from tests.gauntlet.flow import PocketTts
from tests.gauntlet.linear import LinearCrossEntropy, LinearSelectedLogProbs
from tests.gauntlet.log_probs import SelectedLogProbs
from tests.gauntlet.margins import HingeEmbedding, MultilabelSoftMargin, SoftMargin
from tests.gauntlet.policies import PolicyLoss, ValueLoss
from tests.gauntlet.regions import Dice, Giou, Iou
from tests.gauntlet.rows import CrossEntropy, Nll
from tests.gauntlet.transducers import Transducer
from tests.gauntlet.triples import GaussianNll, MarginRanking, PoissonNll
from tests.gauntlet.vectors import CosineEmbedding, MultilabelMargin, MultiMargin, TripletMargin

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Kernel

TOKENS = ("causal_lm", "masked_lm", "token_classification")
LABELLED = (*TOKENS, "sequence_classification", "question_answering", "semantic_segmentation")
SOFTMAX = ("cross_entropy", *LABELLED)
ROWS = (*SOFTMAX, "nll")
IGNORING = tuple(name for name in ROWS if name != "question_answering")
DISTANCES = ("mse", "l1", "huber", "smooth_l1")
SIGMOIDS = ("bce_with_logits", "sigmoid_focal", "varifocal")
ELEMENTS = (*DISTANCES, "bce", "kl_div", *SIGMOIDS)
BOXES = ("iou", "giou")
ALIGNMENTS = ("ctc", "ctc_of_logits")
TRANSDUCERS = ("rnnt", "tdt")
LINEAR = ("linear_cross_entropy", "linear_selected_log_probs")
REDUCED = ("cross_entropy", "nll", *ELEMENTS, "dice", *BOXES)

# Heads that match objects, which have no kernel of their own here.
DETR = ("object_detection", "segmentation")
FOCAL = ("deformable_detr_object_detection", "grounding_dino_object_detection", "lw_detr_object_detection")
LAYERED = ("rt_detr_object_detection", "d_fine_object_detection", "deimv2_object_detection")

HONEST: dict[str, type[Kernel]] = {
    **dict.fromkeys(SOFTMAX, CrossEntropy),
    "nll": Nll,
    "selected_log_probs": SelectedLogProbs,
    "linear_cross_entropy": LinearCrossEntropy,
    "linear_selected_log_probs": LinearSelectedLogProbs,
    "mse": Mse,
    "l1": L1,
    "huber": Huber,
    "smooth_l1": SmoothL1,
    "bce": Bce,
    "bce_with_logits": BceWithLogits,
    "kl_div": KlDiv,
    "soft_margin": SoftMargin,
    "hinge_embedding": HingeEmbedding,
    "multilabel_soft_margin": MultilabelSoftMargin,
    "info_nce": InfoNce,
    "sigmoid_contrastive": SigmoidContrastive,
    "margin_ranking": MarginRanking,
    "gaussian_nll": GaussianNll,
    "poisson_nll": PoissonNll,
    "sigmoid_focal": Focal,
    "varifocal": Varifocal,
    "dice": Dice,
    "iou": Iou,
    "giou": Giou,
    "pocket_tts": PocketTts,
    **dict.fromkeys(ALIGNMENTS, Ctc),
    "multi_margin": MultiMargin,
    "multilabel_margin": MultilabelMargin,
    "triplet_margin": TripletMargin,
    "cosine_embedding": CosineEmbedding,
    **dict.fromkeys(TRANSDUCERS, Transducer),
    "policy_loss": PolicyLoss,
    "value_loss": ValueLoss,
}
