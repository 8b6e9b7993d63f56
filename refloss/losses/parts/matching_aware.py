"""Matching-aware loss: binary cross-entropy with a power of a box's IoU as its target.

With p = σ(x), the IoU q of the box of a positive class, t = q^γ and b(x, t) = softplus(x) − t·x,

    positive   ℓ = b(x, t),                ∂ℓ/∂x = p − t
    negative   ℓ = α·p^γ·softplus(x),      ∂ℓ/∂x = α·p^γ·p

Held constant: the IoU, and the weight α·p^γ although it depends on x. What differs from losses/varifocal.py: the power
on the IoU, and that a positive class weighs 1 however bad its box is, so that a bad box is unlearnt.

Counterpart: Deimv2Loss.loss_labels_mal in transformers; without mal_alpha, α is 1. Source: Huang et al., "DEIM: DETR
with Improved Matching for Fast Convergence", 2025.
"""

from __future__ import annotations

from refloss import jit
from refloss.kernels.one_class.loop import OneClassLoop
from refloss.losses.bce_with_logits import soft_target
from refloss.losses.sigmoid_focal import power_pair
from refloss.losses.varifocal import detached_focal
from refloss.numerics.exponential import log_pair


@jit.scalar
def _negative(x, focus):
    return detached_focal(x, focus.negative, focus.gamma)


@jit.helper
def _positive(x, quality, focus):
    if quality[0] > 0.0:
        return soft_target(x, power_pair(log_pair(quality[0], quality[1]), focus.gamma))
    target = 1.0 if focus.gamma == 0.0 and quality[0] == 0.0 else quality[0]
    return soft_target(x, (target, 0.0))


ONE_CLASS_LOOP = OneClassLoop("matching_aware", _negative, _positive)
