"""Planes of other sizes, and how gradients come back from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Weights(NamedTuple):
    """Each output of an axis is (1 − share)·first + share·second."""

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray  # float64
    size: int

    def resampled(self, values: np.ndarray, axis: int) -> np.ndarray:
        """An element with no share has no part in it: it may be infinite."""
        share = self.share.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - axis - 1))
        low, high = (np.take(values, index, axis) for index in (self.first, self.second))
        return np.asarray((1 - share) * low + np.where(share == 0, 0, share * high))

    def adjoint(self, gradient: np.ndarray, axis: int) -> np.ndarray:
        """Hands what comes for each output back to its two elements, with the same weights."""
        given = np.moveaxis(gradient, axis, 0)
        share = self.share.astype(gradient.dtype).reshape(-1, *(1,) * (given.ndim - 1))
        back = np.zeros((self.size, *given.shape[1:]), gradient.dtype)
        np.add.at(back, self.first, (1 - share) * given)
        second = self.share != 0
        np.add.at(back, self.second[second], (share * given)[second])
        return np.moveaxis(back, 0, axis)


def bilinear(size: int, resized: int) -> Weights:
    """Between the centres of elements (align_corners=False), held at the borders."""
    return between((np.arange(resized) + 0.5) * size / max(resized, 1) - 0.5, size)


def corners_aligned(size: int, resized: int) -> Weights:
    """Between the first and the last element (align_corners=True)."""
    return between(np.arange(resized) * ((size - 1) / max(resized - 1, 1)), size)


def nearest(size: int, resized: int) -> Weights:
    """The element that an output lies in."""
    return between(np.floor(np.arange(resized) * size / max(resized, 1)), size)


def between(places: np.ndarray, size: int) -> Weights:
    """Where places lie among so many elements."""
    places = np.clip(places, 0, size - 1)
    first = np.floor(places).astype(np.int64)
    return Weights(first, np.minimum(first + 1, size - 1), places - first, size)
