"""Decoupled distillation: distributions of a layer are pulled to those of the last layer, its teacher.

For a row of logits x and the teacher's y, with a temperature T, s = softmax(x/T) and t = softmax(y/T),

    ℓ = w·T²·KL(t ‖ s) = w·T²·Σ_j t_j·(log t_j − log s_j),    ∂ℓ/∂x_j = w·T·(s_j − t_j)

where w is the IoU of a matched query's box, or else the teacher's highest probability of any class. Rows of matched
queries and of all others are averaged apart, and the averages weighted by the root of how many they are an image:

    L = (√n₊·mean₊ ℓ + √n₋·mean₋ ℓ)/(√n₊ + √n₋)

Held constant: the teacher, the weights w and the matching.

Numerics. A layer close to its teacher leaves little of t − s, and less of KL. With z_j = (x_j − y_j)/T − Σ_k t_k·(x_k −
y_k)/T and φ(z) = e^z − 1 − z ≥ 0,

    KL = log(1 + Φ),    Φ = Σ_j t_j·φ(z_j),    s_j − t_j = t_j·(e^(z_j) − 1 − Φ)/(1 + Φ)

because Σ t_j·z_j = 0, so Σ t_j·e^(z_j) = 1 + Φ. All terms of Φ have one sign, and for |z| ≤ ln(2)/2 φ is z²·P(z) of the
exponential's own series (numerics.exponential), e^z − 1 is z + φ. Only where Φ leaves the range of float64 do the plain
formulas serve.

Counterpart: the second half of DFineLoss.loss_local in transformers, T = 5. Source: Peng et al., "D-FINE", 2024; the
decoupling: Zheng et al., "Localization Distillation for Dense Object Detection", 2022.
"""

from __future__ import annotations

TEMPERATURE = 5.0
