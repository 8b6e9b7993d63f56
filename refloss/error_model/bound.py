"""A bound for every element of a tensor, without the room that the tensor takes.

Of a large tensor a few numbers a row are kept, or of a sum one number. What an element may be off by is a formula of
those and of the element's own inputs: any part of it is computed from that part of the inputs, cast to float64.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.roundoff import real

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# Elements that are taken at once: a dozen of float64 temporaries of as many stay below 10 MB.
BLOCK = 1 << 16
# As many elements are kept once they are computed, 2 MB: many candidates are judged by the bounds of a golden case.
KEPT = 1 << 18


class Bound:
    """How far each element of a tensor may be off: all of them as an array, or a part of them.

    Attributes:
        shape: that of the tensor.
    """

    def __init__(self, shape: tuple[int, ...], of_part: Callable[[int, int], Any]) -> None:
        self.shape = tuple(shape)
        self._of_part = of_part

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    def part(self, first: int, last: int) -> np.ndarray:
        """Elements first to last, the last one excluded, in C order; float64, never NaN."""
        return self._kept[first:last] if self.size <= KEPT else self._computed(first, last)

    @functools.cached_property
    def _kept(self) -> np.ndarray:
        kept = np.empty(self.size)
        for first, last in blocks(self.size):
            kept[first:last] = self._computed(first, last)
        return kept

    def _computed(self, first: int, last: int) -> np.ndarray:
        with np.errstate(all="ignore"):  # what is infinite or undefined has no bound, and is compared as it is
            return np.broadcast_to(without_nan(self._of_part(first, last)), (last - first,))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        whole = np.empty(self.size)
        for first, last in blocks(self.size):
            whole[first:last] = self.part(first, last)
        shaped: np.ndarray = whole.reshape(self.shape).astype(dtype or np.float64, copy=False)
        return shaped

    def reshaped(self, shape: tuple[int, ...]) -> Bound:
        """The same of as many elements of another shape."""
        return Bound(shape, self._of_part)


def whole(values: Any, shape: tuple[int, ...] | None = None, lost: float = 0.0) -> Bound:
    """The bound of a small tensor, or of a number; lost is added to every element."""
    held = np.array(values, np.float64) + lost
    flat = held.reshape(-1)
    return Bound(held.shape if shape is None else shape, lambda first, last: flat[first:last])


def summed(each: Bound, own: tuple[int, ...], shape: tuple[int, ...]) -> Bound:
    """Of elements' bounds, the sums of those that share a number of an array.

    Args:
        each: of all elements.
        own: the array's shape with all of their axes.
        shape: the array's own.
    """
    if own == each.shape:
        return each.reshaped(shape)
    axes = tuple(axis for axis, (kept, size) in enumerate(zip(own, each.shape, strict=True)) if kept != size)
    return whole(np.add.reduce(np.asarray(each), axes), shape)


def without_nan(values: Any) -> np.ndarray:
    """Infinitely many times nothing is nothing: an element without terms, where no label counts."""
    numbers = real(values)
    return np.where(np.isnan(numbers), 0.0, numbers)


def blocks(size: int, length: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Where parts of so many elements begin and end."""
    return ((first, min(first + length, size)) for first in range(0, size, length))


def part(values: np.ndarray, first: int, last: int) -> np.ndarray:
    """Elements in C order as float64, of an array of any layout, of which nothing else is read."""
    if values.flags.c_contiguous:
        return real(values.reshape(-1)[first:last])
    return real(values.flat[first:last])


class Aligned:
    """Arrays that are broadcast to one shape and read in parts; the part that was read last is kept."""

    def __init__(self, shape: tuple[int, ...], arrays: Mapping[str, Any]) -> None:
        self.shape, self.size = shape, math.prod(shape)
        self._arrays = {name: np.broadcast_to(np.asarray(values), shape) for name, values in arrays.items()}
        self.part = functools.lru_cache(maxsize=1)(self._part)

    def _part(self, first: int, last: int) -> dict[str, np.ndarray]:
        return {name: part(values, first, last) for name, values in self._arrays.items()}


def total(size: int, of_part: Callable[[int, int], Any]) -> float:
    """The sum of what is made of all parts, of numbers that are not NaN."""
    return float(sum(without_nan(of_part(first, last)).sum() for first, last in blocks(size)))
