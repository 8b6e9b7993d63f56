"""Bilinear resampling of planes, and its adjoint.

Along an axis of n elements resampled to N, output J lies at s = (J + 1/2)·n/N − 1/2, held at 0 from below, between
elements i = ⌊s⌋ and min(i + 1, n − 1), with weights 1 − λ and λ = s − i. The adjoint hands each output's cotangent
back to the two elements with the same weights. It adds in the order of the outputs, plane by plane, so that threads
cannot change it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load, save


class Axis(NamedTuple):
    """Where each output of an axis lies: elements first and second, and the weight of the second."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray


def axis(size: int, resized: int) -> Axis:
    """Where resized outputs lie among size elements, from integers, with one rounding."""
    outputs = np.arange(resized, dtype=np.int64)
    numerator = np.maximum((2 * outputs + 1) * size - resized, 0)
    first = np.minimum(numerator // (2 * resized), max(size - 1, 0))
    weight = (numerator - first * (2 * resized)) / (2.0 * resized)
    return Axis(first, np.minimum(first + 1, max(size - 1, 0)), weight)


@jit.scalar
def between(low, high, weight):
    """An output between two elements, the weight being the second's."""
    return low * (1.0 - weight) + high * weight


@jit.scalar
def with_share(total, value, weight):
    """A total with what an output hands back to an element."""
    return total + value * weight


@jit.helper
def widen_plane(planes, plane, horizontal, line, wide):
    """A plane, resampled along its lines."""
    for y in range(wide.shape[0]):
        load(planes, (plane * wide.shape[0] + y) * line.size, line)
        target = wide[y]
        for x in range(target.size):
            target[x] = between(line[horizontal.first[x]], line[horizontal.second[x]], horizontal.weight[x])


@jit.helper
def _between(low, high, weight, row):
    for i in range(row.size):
        row[i] = between(low[i], high[i], weight)


@jit.helper
def resampled_line(wide, vertical, y, row):
    """Output line y of a widened plane."""
    _between(wide[vertical.first[y]], wide[vertical.second[y]], vertical.weight[y], row)


@jit.kernel
def resample_planes(planes, vertical, horizontal, height, width, resized, first, last):
    """resized[p] from plane p of height × width, for planes first ... last."""
    wide = np.empty((height, resized.shape[2]))
    line = np.empty(width)
    for p in range(first, last):
        widen_plane(planes, p, horizontal, line, wide)
        for y in range(resized.shape[1]):
            resampled_line(wide, vertical, y, resized[p, y])


@jit.helper
def _add_scaled(row, weight, total):
    for i in range(row.size):
        total[i] = with_share(total[i], row[i], weight)


@jit.helper
def spread_line(row, vertical, y, wide):
    """The adjoint of resampled_line, added to what is there."""
    _add_scaled(row, 1.0 - vertical.weight[y], wide[vertical.first[y]])
    _add_scaled(row, vertical.weight[y], wide[vertical.second[y]])


@jit.helper
def narrow_plane(wide, horizontal, line, planes, plane):
    """The adjoint of widen_plane."""
    for y in range(wide.shape[0]):
        line[:] = 0.0
        source = wide[y]
        for x in range(source.size):
            first, second, weight = horizontal.first[x], horizontal.second[x], horizontal.weight[x]
            line[first] = with_share(line[first], source[x], 1.0 - weight)
            line[second] = with_share(line[second], source[x], weight)
        save(line, planes, (plane * wide.shape[0] + y) * line.size)


@jit.kernel
def spread_planes(resized, vertical, horizontal, height, width, planes, first, last):
    """The adjoint: plane p of height × width from the cotangent resized[p]."""
    wide = np.empty((height, resized.shape[2]))
    line = np.empty(width)
    for p in range(first, last):
        wide[:] = 0.0
        for y in range(resized.shape[1]):
            spread_line(resized[p, y], vertical, y, wide)
        narrow_plane(wide, horizontal, line, planes, p)
