"""Fine-grained localisation: an edge of a box as a distribution over bins, and the loss that pulls it to two of them.

D-FINE predicts for each edge of a box how far it is from a reference box, as a distribution over n + 1 offsets

    W(0) = −2a,    W(i) = ±(s^|i − n/2| − 1),    W(n) = 2a,    a = |up·reg_scale|,    s = (a + 1)^(2/(n − 2))

which lie close together in the middle. An offset d between W(i) and W(i + 1) is the mixture of the two bins whose mean
it is: r = (d − W(i))/(W(i + 1) − W(i)) of the right one and 1 − r of the left one. Below W(0) it is the first bin, from
W(n) on the last. The offset of the left edge of a box b from the reference (x, y, w, h) is, with R = |reg_scale|,

    d = (x − b.x₁)/(w/R + 10^-16) − R/2

and the same for the other edges, with b.x₂ − x on the other side.

The loss of an edge is the cross-entropy with that mixture, times the IoU q of the predicted box; x are the edge's n + 1
logits and p their softmax:

    ℓ = q·((1 − r)·(−log p_i) + r·(−log p_{i + 1})),    ∂ℓ/∂x_j = q·(p_j − (1 − r)·[j = i] − r·[j = i + 1])

Held constant: the IoU and the mixture, and with them the boxes.

Counterparts: weighting_function, bbox2distance and DFineLoss.unimodal_distribution_focal_loss in transformers. Source:
Peng et al., "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement", 2024; the mixture of
two bins: Li et al., "Generalized Focal Loss", 2020.
"""

from __future__ import annotations

import decimal
import functools
from decimal import Decimal

import numpy as np

_DIGITS = 50
_LEAST_SIZE = 1e-16


@functools.lru_cache(maxsize=64)
def offsets(bins: int, up: float, reg_scale: float) -> np.ndarray:
    """W, [bins + 1] float64, each correctly rounded; bins is even."""
    with decimal.localcontext(prec=_DIGITS):
        reach = abs(Decimal(up) * Decimal(reg_scale))
        step = (reach + 1) ** (Decimal(2) / (bins - 2))
        right = [step**i - 1 for i in range(1, bins // 2)]
        values = [-2 * reach, *(-value for value in reversed(right)), Decimal(0), *right, 2 * reach]
        result = np.array([float(value) for value in values])
    result.flags.writeable = False
    return result


def edge_offsets(references: np.ndarray, boxes: np.ndarray, reg_scale: float) -> np.ndarray:
    """[M, 4] how far the edges of boxes are from references, both [M, 4] centre and size."""
    scale = abs(reg_scale)
    centers, sizes = references[:, :2], references[:, 2:] / scale + _LEAST_SIZE
    low, high = boxes[:, :2] - 0.5 * boxes[:, 2:], boxes[:, :2] + 0.5 * boxes[:, 2:]
    return np.concatenate([(centers - low) / sizes, (high - centers) / sizes], axis=1) - 0.5 * scale


def mixtures(distances: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[..., bins + 1] the distributions whose means are some distances; values are those of W."""
    last = len(values) - 1
    left = (values <= distances[..., None]).sum(axis=-1) - 1
    bin_ = np.clip(left, 0, last - 1)
    with np.errstate(invalid="ignore"):
        below, above = np.abs(distances - values[bin_]), np.abs(values[bin_ + 1] - distances)
        right = below / (below + above)
    right = np.where(left < 0, 0.0, np.where(left >= last, 1.0, right))
    result = np.zeros((*distances.shape, last + 1))
    np.put_along_axis(result, bin_[..., None], (1.0 - right)[..., None], axis=-1)
    np.put_along_axis(result, bin_[..., None] + 1, right[..., None], axis=-1)
    return result
