"""Boxes, masks and the heads that match, as their definitions say in mpmath; derivatives by differences there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np

from tests.truth import Pairs, pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PRECISION_BITS = 700
# A central difference is off by its square: far more digits than any format has.
STEP_BITS = 200


def exact(values: Any) -> np.ndarray:
    """An array of mpmath numbers."""
    array = np.asarray(values)
    return np.array([mpmath.mpf(float(value)) for value in array.ravel()], dtype=object).reshape(array.shape)


def derivative(loss: Callable[[Mapping[str, np.ndarray]], Any], arrays: Mapping[str, np.ndarray], name: str) -> Pairs:
    """∂loss/∂arrays[name], element by element."""
    with mpmath.workprec(PRECISION_BITS):
        known = {key: exact(value) for key, value in arrays.items()}
        step = mpmath.ldexp(1, -STEP_BITS)
        result = np.empty(known[name].size, dtype=object)
        for i in range(result.size):
            ends = []
            for sign in (1, -1):
                moved = known[name].copy()
                moved.reshape(-1)[i] += sign * step
                ends.append(loss({**known, name: moved}))
            result[i] = (ends[0] - ends[1]) / (2 * step)
        return pairs(result.reshape(known[name].shape))


def value(loss: Callable[[Mapping[str, np.ndarray]], Any], arrays: Mapping[str, np.ndarray]) -> Pairs:
    """A loss in mpmath."""
    with mpmath.workprec(PRECISION_BITS):
        return pairs(loss({key: exact(array) for key, array in arrays.items()}))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def softplus(x: Any) -> Any:
    return mpmath.log1p(mpmath.exp(x)) if x < 0 else x + mpmath.log1p(mpmath.exp(-x))


def focal(x: Any, t: Any, alpha: float = 0.25, gamma: float = 2.0) -> Any:
    """Sigmoid focal loss of an element."""
    p = sigmoid(x)
    missed = p * (1 - t) + sigmoid(-x) * t
    weight = 1 if alpha < 0 else alpha * t + (1 - mpmath.mpf(alpha)) * (1 - t)
    return weight * missed**gamma * (t * softplus(-x) + (1 - t) * softplus(x))


def dice(x: np.ndarray, t: np.ndarray) -> Any:
    """Dice loss of a mask."""
    p = [sigmoid(each) for each in x.ravel()]
    both = sum(a * b for a, b in zip(p, t.ravel(), strict=True))
    return 1 - (2 * both + 1) / (sum(p) + sum(t.ravel()) + 1)


def corners(box: np.ndarray) -> list[Any]:
    """(x₁, y₁, x₂, y₂) of a centre and a size."""
    x, y, w, h = box
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap(a: Any, b: Any) -> tuple[Any, Any]:
    """IoU and GIoU of boxes given by their corners."""

    def area(box: Any) -> Any:
        return (box[2] - box[0]) * (box[3] - box[1])

    sides = [max(mpmath.mpf(0), min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1)]
    around = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    common = sides[0] * sides[1]
    union = area(a) + area(b) - common
    return common / union, common / union - (around - union) / around


def upsampled(plane: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Bilinear resampling, align_corners=False."""
    places = []
    for have, want in zip(plane.shape, size, strict=True):
        at = [max(mpmath.mpf(2 * i + 1) * have / (2 * want) - mpmath.mpf(1) / 2, mpmath.mpf(0)) for i in range(want)]
        places.append([(int(s), min(int(s) + 1, have - 1), s - int(s)) for s in at])
    rows = [
        [
            (1 - v) * ((1 - h) * plane[top, left] + h * plane[top, right])
            + v * ((1 - h) * plane[bottom, left] + h * plane[bottom, right])
            for left, right, h in places[1]
        ]
        for top, bottom, v in places[0]
    ]
    return np.array(rows, dtype=object)


def softmax_classes(logits: np.ndarray, classes: np.ndarray, no_object: float) -> Any:
    """Weighted cross-entropy; the last class is no object."""
    total, weights = mpmath.mpf(0), mpmath.mpf(0)
    for row, label in zip(logits.reshape(-1, logits.shape[-1]), classes.ravel(), strict=True):
        weight = mpmath.mpf(no_object) if label == logits.shape[-1] - 1 else mpmath.mpf(1)
        total += weight * (mpmath.log(sum(mpmath.exp(x) for x in row)) - row[label])
        weights += weight
    return total / weights


def focal_classes(logits: np.ndarray, classes: np.ndarray, alpha: float, num_boxes: float) -> Any:
    """Focal loss of every class; no class is meant where the label is the number of classes."""
    rows = logits.reshape(-1, logits.shape[-1])
    total = sum(
        focal(x, mpmath.mpf(int(c == label)), alpha)
        for row, label in zip(rows, classes.ravel(), strict=True)
        for c, x in enumerate(row)
    )
    return total / num_boxes
