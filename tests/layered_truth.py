"""The terms of RT-DETR, D-FINE, DEIMv2 and LW-DETR as their definitions say, in mpmath; what is held comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np

from tests.detection_truth import sigmoid, softplus

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_BITS = 350
PRECISION_BITS = 1100


def slope(value: Callable[[Any], Any], at: Any) -> Any:
    """A central difference; it is off by the square of a step of 2^-350."""
    step = mpmath.ldexp(1, -STEP_BITS)
    return (value(at + step) - value(at - step)) / (2 * step)


def cross_entropy(x: Any, t: Any) -> Any:
    """Binary, of a logit with a soft target."""
    return t * softplus(-x) + (1 - t) * softplus(x)


def varifocal(x: Any, meant: bool, iou: Any, alpha: float, gamma: float) -> Callable[[Any], Any]:
    """The loss as a function of the logit with its weight held at x."""
    if meant:
        return lambda y: iou * cross_entropy(y, iou)
    weight = mpmath.mpf(alpha) * sigmoid(x) ** gamma
    return lambda y: weight * softplus(y)


def matching_aware(x: Any, meant: bool, iou: Any, alpha: float | None, gamma: float) -> Callable[[Any], Any]:
    if meant:
        return lambda y: cross_entropy(y, iou**gamma)
    weight = (1 if alpha is None else mpmath.mpf(alpha)) * sigmoid(x) ** gamma
    return lambda y: weight * softplus(y)


def iou_aware(x: Any, meant: bool, iou: Any, alpha: float) -> Callable[[Any], Any]:
    if not meant:
        return lambda y: sigmoid(y) ** 2 * softplus(y)
    exponent = mpmath.mpf(alpha)
    quality = max(sigmoid(x) ** exponent * iou ** (1 - exponent), mpmath.mpf(0.01))
    return lambda y: cross_entropy(y, quality)


def log_softmax(row: Any) -> list[Any]:
    total = mpmath.log(sum(mpmath.exp(x) for x in row))
    return [x - total for x in row]


def weighting(bins: int, up: float, reg_scale: float) -> list[Any]:
    """W(0) ... W(bins)."""
    reach = abs(mpmath.mpf(up) * mpmath.mpf(reg_scale))
    step = (reach + 1) ** (mpmath.mpf(2) / (bins - 2))
    half = bins // 2
    inner = [mpmath.sign(i - half) * (step ** abs(i - half) - 1) for i in range(1, bins)]
    return [-2 * reach, *inner, 2 * reach]


def mixture(distance: Any, values: list[Any]) -> list[Any]:
    """The distribution over bins whose mean is a distance."""
    last = len(values) - 1
    result = [mpmath.mpf(0)] * (last + 1)
    left = sum(value <= distance for value in values) - 1
    if left < 0 or left >= last:
        result[0 if left < 0 else last] = mpmath.mpf(1)
        return result
    right = (distance - values[left]) / (values[left + 1] - values[left])
    result[left], result[left + 1] = 1 - right, right
    return result


def edges(reference: np.ndarray, corners: list[Any], reg_scale: float) -> list[Any]:
    """How far the edges of a box are from a reference (centre, size)."""
    x, y, w, h = reference
    scale = abs(mpmath.mpf(reg_scale))
    tiny = mpmath.mpf(1e-16)
    of_x, of_y = w / scale + tiny, h / scale + tiny
    raw = [(x - corners[0]) / of_x, (y - corners[1]) / of_y, (corners[2] - x) / of_x, (corners[3] - y) / of_y]
    return [each - scale / 2 for each in raw]


def fine_grained(row: Any, target: list[Any]) -> Any:
    return -sum(t * s for t, s in zip(target, log_softmax(row), strict=True))


def divergence(row: Any, teacher: Any) -> Any:
    """T²·KL of the teacher's distribution from a row's, T = 5."""
    of_row, of_teacher = (log_softmax([x / 5 for x in each]) for each in (row, teacher))
    return 25 * sum(mpmath.exp(t) * (t - s) for t, s in zip(of_teacher, of_row, strict=True))
