"""IoU and GIoU of boxes in rational numbers: values and derivatives without any error, ties included.

A number goes with its derivatives for the four coordinates of the first box. Of a maximum of equal numbers the
derivative is the mean of both, as PyTorch's is of two tensors; that of max(0, x) is 1 at 0.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

COORDINATES = 4


class Number(NamedTuple):
    """A value and its derivatives."""

    value: Fraction
    slopes: tuple[Fraction, ...] = (Fraction(0),) * COORDINATES

    def __add__(self, other: Any) -> Number:
        return Number(self.value + other.value, self._with(other, Fraction(1), Fraction(1)))

    def __sub__(self, other: Number) -> Number:
        return Number(self.value - other.value, self._with(other, Fraction(1), Fraction(-1)))

    def __mul__(self, other: Any) -> Number:
        return Number(self.value * other.value, self._with(other, other.value, self.value))

    def __truediv__(self, other: Number) -> Number:
        quotient = self.value / other.value
        return Number(quotient, self._with(other, 1 / other.value, -quotient / other.value))

    def _with(self, other: Number, own: Fraction, others: Fraction) -> tuple[Fraction, ...]:
        return tuple(own * a + others * b for a, b in zip(self.slopes, other.slopes, strict=True))


def constant(value: Any) -> Number:
    return Number(Fraction(value))


def larger(a: Number, b: Number) -> Number:
    if a.value == b.value:
        return Number(a.value, tuple((x + y) / 2 for x, y in zip(a.slopes, b.slopes, strict=True)))
    return a if a.value > b.value else b


def smaller(a: Number, b: Number) -> Number:
    zero = constant(0)
    return zero - larger(zero - a, zero - b)


def variables(box: np.ndarray) -> list[Number]:
    """The coordinates of the first box."""
    unit = [tuple(Fraction(int(i == k)) for k in range(COORDINATES)) for i in range(COORDINATES)]
    return [Number(Fraction(float(value)), unit[i]) for i, value in enumerate(box)]


def corners(box: list[Number], box_format: str) -> list[Number]:
    if box_format == "xyxy":
        return box
    half = [box[k] * constant(Fraction(1, 2)) for k in (2, 3)]
    return [box[0] - half[0], box[1] - half[1], box[0] + half[0], box[1] + half[1]]


def losses(first: np.ndarray, second: np.ndarray, box_format: str) -> dict[str, Number]:
    """1 − IoU and 1 − GIoU, as functions of the first box."""
    a = corners(variables(first), box_format)
    b = corners([constant(float(value)) for value in second], box_format)
    sides = [smaller(a[k + 2], b[k + 2]) - larger(a[k], b[k]) for k in (0, 1)]
    sides = [side if side.value >= 0 else constant(0) for side in sides]
    around = [larger(a[k + 2], b[k + 2]) - smaller(a[k], b[k]) for k in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    common, whole = sides[0] * sides[1], around[0] * around[1]
    union = areas[0] + areas[1] - common
    iou = common / union
    return {"iou": constant(1) - iou, "giou": constant(1) - (iou - (whole - union) / whole)}


def nearest(value: Fraction, precision: int, smallest_exponent: int) -> Fraction:
    """A number rounded to nearest even with so many bits, from the exponent of the smallest normal one on."""
    if value == 0:
        return value
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, smallest_exponent) - precision + 1)
    return round(value / unit) * unit
