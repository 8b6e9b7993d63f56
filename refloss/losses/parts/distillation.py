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

import numpy as np

from refloss import jit
from refloss.kernels.distillation.loop import DistillationLoop
from refloss.numerics.bits import fma
from refloss.numerics.exponential import excess, exp, log, log1p

TEMPERATURE = 5.0
# From here on the plain formulas: KL is above 460, far from cancelling, and 1/(1 + Φ) is still normal.
LARGEST = 1e200


@jit.scalar
def _larger(value, highest):
    """The larger of two, NaN if the first one is."""
    return value if value > highest or value != value else highest


@jit.scalar
def _softened(value, highest):
    """e^((value − highest)/T)."""
    return exp((value - highest) / TEMPERATURE)


@jit.scalar
def _with_mean(x, y, t, mean):
    """(x − y)/T, and the mean with t times that."""
    far = (x - y) / TEMPERATURE
    return far, fma(t, far, mean)


@jit.scalar
def _with_excess(far, t, mean, total):
    """t·(e^z − 1), and the total with t·φ(z), z = far − mean."""
    growth, beyond = excess(far - mean)
    return t * growth, fma(t, beyond, total)


@jit.scalar
def _divergence(total):
    """KL(t ‖ s) from Φ, and 1/(1 + Φ)."""
    return log1p(total), 1.0 / (1.0 + total)


@jit.scalar
def _slope(growth, t, total, inverse, coefficient):
    """coefficient·(s − t) from t·(e^z − 1)."""
    return coefficient * (fma(-t, total, growth) * inverse)


@jit.helper
def _plain_divergence(x, y, t):
    """KL(t ‖ s) of a row by its definition; x becomes s − t."""
    highest, best = -np.inf, -np.inf
    for c in range(x.size):
        highest, best = _larger(x[c], highest), _larger(y[c], best)
    total, below = 0.0, 0.0
    for c in range(x.size):
        total += _softened(x[c], highest)
        below += _softened(y[c], best)
    divergence = log(total) - log(below)
    for c in range(x.size):
        if t[c] != 0.0:
            divergence += t[c] * (((y[c] - best) - (x[c] - highest)) / TEMPERATURE)
        x[c] = _softened(x[c], highest) / total - t[c]
    return divergence


LOOP = DistillationLoop(
    "distillation",
    larger=_larger,
    soften=_softened,
    with_mean=_with_mean,
    with_excess=_with_excess,
    divergence=_divergence,
    slope=_slope,
    plain=_plain_divergence,
    largest=LARGEST,
)
