"""Masks at points: bilinear samples and their adjoint, the nearest pixel, cross-entropy and dice loss."""

from __future__ import annotations

from typing import NamedTuple

import gmpy2
import numpy as np

from tests.mpfr.definitions import ONE, ZERO, soft_target
from tests.mpfr.masks import dice_of
from tests.mpfr.rounding import Real, real

HALF = ONE / 2


class Pixel(NamedTuple):
    """One that a point has a share in, and which."""

    y: int
    x: int
    weight: Real


def place(coordinate: float, size: int) -> tuple[int, Real]:
    """The pixel before a point of an axis, and how far behind it the point is."""
    at = real(coordinate) * size - HALF
    first = int(gmpy2.floor(at))
    return first, at - first


def pixels(point: np.ndarray, size: tuple[int, int]) -> list[Pixel]:
    """Those around a point (x, y) that are in the plane."""
    (left, right_share), (top, lower_share) = place(point[0], size[1]), place(point[1], size[0])
    corners = [
        Pixel(top + i, left + j, (lower_share if i else ONE - lower_share) * (right_share if j else ONE - right_share))
        for i in (0, 1)
        for j in (0, 1)
    ]
    return [pixel for pixel in corners if 0 <= pixel.y < size[0] and 0 <= pixel.x < size[1]]


def sampled(plane: np.ndarray, point: np.ndarray, size: tuple[int, int] | None = None) -> Real:
    """A plane's value at a point; it is padded with 0 to a size."""
    height, width = plane.shape
    around = pixels(point, (height, width) if size is None else size)
    inside = [pixel for pixel in around if pixel.y < height and pixel.x < width]
    return gmpy2.fsum([pixel.weight * real(plane[pixel.y, pixel.x]) for pixel in inside])


def nearest(plane: np.ndarray, point: np.ndarray) -> Real:
    """The value of the pixel that is nearest; of two the one with the even number, and 0 outside."""
    place_of = []
    for coordinate, size in zip(point, plane.shape[::-1], strict=True):
        first, share = place(coordinate, size)
        place_of.append(first + int(share > HALF or (share == HALF and first % 2 == 1)))
    x, y = place_of
    return real(plane[y, x]) if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1] else ZERO


class Loss(NamedTuple):
    """Of a mask: the mean of its cross-entropies, its dice loss, and what its pixels get of both."""

    entropy: Real
    dice: Real
    gradient: np.ndarray


def loss_of(plane: np.ndarray, points: np.ndarray, t: list[Real], of_entropy: Real, of_dice: Real) -> Loss:
    """A mask of MPFR numbers at points, for targets there and the cotangents of both losses."""
    x = [gmpy2.fsum([p.weight * plane[p.y, p.x] for p in pixels(point, plane.shape)]) for point in points]
    entropies = [soft_target(a, b) for a, b in zip(x, t, strict=True)]
    dice = dice_of(x, t)
    gradient = np.full(plane.shape, ZERO, object)
    for point, (_, first), second in zip(points, entropies, dice.of_logits, strict=True):
        slope = of_entropy / len(points) * first + of_dice * second
        for pixel in pixels(point, plane.shape):
            gradient[pixel.y, pixel.x] += pixel.weight * slope
    return Loss(gmpy2.fsum([value for value, _ in entropies]) / len(points), dice.loss, gradient)
