"""Semantic segmentation from its definition: pixels as fractions, softmax and sums in mpmath."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import mpmath
import numpy as np

PRECISION_BITS = 2600


class Truth(NamedTuple):
    """mpmath numbers: of the whole, of each logit, of each pixel."""

    loss: Any
    gradient: np.ndarray
    magnitude: np.ndarray  # of the terms that a gradient is the sum of, all of them positive
    lse: np.ndarray
    nll: np.ndarray


def shares(size: int, resized: int) -> list[list[tuple[int, Fraction]]]:
    """Of each output of an axis, the elements that it lies between and their weights, if they have any."""
    result = []
    for output in range(resized):
        place = min(
            max(Fraction((2 * output + 1) * size, 2 * resized) - Fraction(1, 2), Fraction(0)), Fraction(size - 1)
        )
        first = int(place)
        both = [(first, 1 - (place - first)), (first + 1, place - first)]
        result.append([(element, weight) for element, weight in both if weight != 0])
    return result


def segmentation(
    x: np.ndarray, labels: np.ndarray, ignore_index: int = 255, *, by: Any = 1, items: Any = None
) -> Truth:
    """The mean of pixels' cross-entropies, or their sum over items; the gradient of by times that.

    Logits are finite or −inf, and every pixel has one that is not.
    """
    counted = int(np.count_nonzero(labels != ignore_index)) if items is None else items
    down, across = (shares(*sizes) for sizes in zip(x.shape[2:], labels.shape[1:], strict=True))
    with mpmath.workprec(PRECISION_BITS):
        factor = mpmath.mpf(by) / counted
        gradient, magnitude = (np.full(x.shape, mpmath.mpf(0), dtype=object) for _ in range(2))
        lse, nll = np.empty(labels.shape, dtype=object), np.full(labels.shape, mpmath.mpf(0), dtype=object)
        for image, row, column in np.ndindex(labels.shape):
            places = [(i, j, v * h) for i, v in down[row] for j, h in across[column]]
            logits = [_logit(x[image, c], places) for c in range(x.shape[1])]
            lse[image, row, column] = whole = mpmath.log(mpmath.fsum(mpmath.exp(value) for value in logits))
            label = labels[image, row, column]
            if label == ignore_index:
                continue
            nll[image, row, column] = whole - logits[label]
            for c, value in enumerate(logits):
                share = factor * (mpmath.exp(value - whole) - (c == label))
                for i, j, weight in places:
                    gradient[image, c, i, j] += share * weight.numerator / weight.denominator
                    magnitude[image, c, i, j] += abs(share) * weight.numerator / weight.denominator
        return Truth(mpmath.fsum(nll.ravel()) / counted, gradient, magnitude, lse, nll)


def _logit(plane: np.ndarray, places: list[tuple[int, int, Fraction]]) -> Any:
    if any(plane[i, j] == -np.inf for i, j, _ in places):
        return mpmath.mpf("-inf")
    value = sum(weight * Fraction(float(plane[i, j])) for i, j, weight in places)
    return mpmath.mpf(value.numerator) / value.denominator
