"""Bilinear resampling as two products of matrices, and how far an honest one may be off.

A pixel's position among h × w is rounded to the type that is computed in: its weights are off by (h + w)·v, next to an
edge on either side. The adjoint gathers with the same weights, and hands the pixels' errors on.
"""

from __future__ import annotations

import numpy as np

from refloss.kernels.resample.loop import axis
from refloss.roundoff import STEPS, Roundoff


def _matrix(size: int, resized: int) -> np.ndarray:
    """[resized, size] weights."""
    samples = axis(size, resized)
    weights = np.zeros((resized, size))
    np.add.at(weights, (np.arange(resized), samples.first), samples.near / samples.whole)
    np.add.at(weights, (np.arange(resized), samples.second), samples.far / samples.whole)
    return weights


def resampled(planes: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Planes [..., h, w] as [..., H, W]."""
    down, across = (_matrix(*pair) for pair in zip(planes.shape[-2:], size, strict=True))
    return shared(down, planes, across.T)


def shared(left: np.ndarray, planes: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of the three, in which what is infinite, or NaN, reaches those elements that have a share of it."""
    finite = np.isfinite(planes)
    values = np.asarray(left @ np.where(finite, planes, 0.0) @ right)
    if not finite.all():
        for value in (-np.inf, np.inf, np.nan):
            has = np.isnan(planes) if np.isnan(value) else planes == value
            values = values + np.where((left > 0) @ has @ (right > 0), value, 0.0)
    return values


def adjoint(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Cotangents [..., H, W] as those of [..., h, w]."""
    down, across = (_matrix(*pair) for pair in zip(size, pixels.shape[-2:], strict=True))
    return shared(down.T, pixels, across)


def _around(planes: np.ndarray) -> tuple[int, ...]:
    return (1,) * (planes.ndim - 2) + (3, 3)


def pixel_error(planes: np.ndarray, size: tuple[int, ...], unit: Roundoff) -> np.ndarray:
    """How far each resampled pixel is off."""
    from scipy import ndimage

    sizes = np.where(np.isfinite(planes), np.abs(planes), 0.0)
    nearby = ndimage.maximum_filter(sizes, _around(planes), mode="constant")
    return np.asarray((STEPS + sum(planes.shape[-2:])) * unit.inside * resampled(nearby, size))


def adjoint_error(errors: np.ndarray, terms: np.ndarray, size: tuple[int, ...], unit: Roundoff) -> np.ndarray:
    """How far gradients [..., h, w] are off, gathered from pixels' cotangents with errors; terms: their magnitudes."""
    from scipy import ndimage

    gathered = adjoint(terms, size)
    near = 9 * ndimage.uniform_filter(gathered, _around(gathered), mode="constant")
    pixels = max(1.0, float(np.prod(terms.shape[-2:]) / np.prod(size)))
    weights = (STEPS + sum(size) + 4 * pixels) * unit.inside
    return np.asarray(adjoint(errors, size) + STEPS * unit.between * gathered + weights * near)
