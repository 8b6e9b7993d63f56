"""The honest kernel of every function that has one here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.gauntlet.elements import Bce, BceWithLogits, Focal, Huber, KlDiv, L1, Mse, SmoothL1, Varifocal
from tests.gauntlet.regions import Dice, Giou, Iou
from tests.gauntlet.rows import CrossEntropy, Nll

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Kernel

TOKENS = ("causal_lm", "masked_lm", "token_classification")
LABELLED = (*TOKENS, "sequence_classification", "question_answering", "semantic_segmentation")
SOFTMAX = ("cross_entropy", *LABELLED)

HONEST: dict[str, type[Kernel]] = {
    **dict.fromkeys(SOFTMAX, CrossEntropy),
    "nll": Nll,
    "mse": Mse,
    "l1": L1,
    "huber": Huber,
    "smooth_l1": SmoothL1,
    "bce": Bce,
    "bce_with_logits": BceWithLogits,
    "kl_div": KlDiv,
    "sigmoid_focal": Focal,
    "varifocal": Varifocal,
    "dice": Dice,
    "iou": Iou,
    "giou": Giou,
}
