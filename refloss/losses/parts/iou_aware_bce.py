"""IoU-aware binary cross-entropy.

With p = σ(x), softplus(x) = log(1 + e^x), and for a positive class the box's IoU q and the quality
w = max(p^α·q^(1 − α), 0.01),

    positive   ℓ = −w·log p − (1 − w)·log(1 − p) = softplus(x) − w·x,      ∂ℓ/∂x = p − w
    negative   ℓ = −p^γ·log(1 − p) = p^γ·softplus(x),                      ∂ℓ/∂x = p^γ·(p + γ·(1 − p)·softplus(x))

Held constant: the quality w, with the p in it. Not held: the weight p^γ of a negative class, which is where
the second term comes from. Such a class is that of losses/sigmoid_focal.py with a target of 0 and a weight of 1.

Counterpart: LwDetrImageLoss.loss_labels in transformers, γ = 2. Source: Cai et al., "Align-DETR", 2023, as used by
Chen et al., "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection", 2024.
"""

from __future__ import annotations

from refloss import jit
from refloss.kernels.one_class.loop import OneClassLoop
from refloss.losses.bce_with_logits import soft_target
from refloss.losses.sigmoid_focal import FARTHEST, absent, power_accurate
from refloss.numerics.accurate import log_accurate, logistic_accurate
from refloss.numerics.pairs import add, multiply, negate, pair, two_sum

LEAST_QUALITY = 0.01
# What the errors of pairs leave of a slope that is 0, as a share of its terms.
NOTHING = 2.0**-90


@jit.helper
def _quality(x, iou, alpha):
    """w as a pair: it may be all but p, so that float64 would leave nothing of p − w."""
    rest = two_sum(1.0, -alpha)
    if iou[0] == 0.0 and rest[0] > 0.0:
        return pair(LEAST_QUALITY)
    known = logistic_accurate(x)
    log_p = negate(add(pair(min(max(-x, 0.0), FARTHEST)), known.small))
    logarithm = multiply(pair(alpha), log_p)
    if rest[0] != 0.0:
        logarithm = add(logarithm, multiply(rest, log_accurate(iou[0], iou[1])))
    quality = power_accurate(logarithm, 1.0)
    # NaN is handed on.
    return pair(LEAST_QUALITY) if quality[0] < LEAST_QUALITY else quality


@jit.scalar
def _negative(x, focus):
    return absent(x, focus.negative, focus.gamma)


@jit.helper
def _positive(x, iou, focus):
    quality = _quality(x, iou, focus.positive) if iou[0] == iou[0] else iou
    value, slope = soft_target(x, quality)
    return value, 0.0 if abs(slope) < NOTHING * quality[0] else slope


ONE_CLASS_LOOP = OneClassLoop("iou_aware_bce", _negative, _positive)
