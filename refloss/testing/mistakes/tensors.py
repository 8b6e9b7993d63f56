"""A tensor that came, beside the right one: what may be wrong with it is tried on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.testing.spacing import FLOATS

if TYPE_CHECKING:
    from refloss.testing.spacing import Elements

SAMPLE = 2**12
SLACK = 1.25  # what is compared was rounded once more than the judge's


class Tensor(NamedTuple):
    """A tensor that is judged."""

    name: str
    got: np.ndarray
    expected: np.ndarray
    allowed: np.ndarray
    bound: np.ndarray  # the same without roundings to the output's type
    rounding: float  # of a number to the tensor's type, relative
    smallest: float  # and absolute, where that is small
    largest: float = np.inf  # finite number of its type
    worst: int = 0  # where the error is largest, in C order
    size: float = 0.0  # of the largest finite element that is right

    @property
    def is_gradient(self) -> bool:
        """Whether it is one, instead of a loss or a component of it."""
        return self.name.startswith("grad.")

    def is_right(self) -> np.ndarray:
        """The elements that pass."""
        return near(self.got, self.expected, self.allowed)

    def sample(self) -> Tensor:
        """A few thousand elements: most mistakes that do not fit do not fit there."""
        if self.got.size <= SAMPLE:
            return self
        return self._replace(
            got=few(self.got), expected=few(self.expected), allowed=few(self.allowed), bound=few(self.bound)
        )

    def part(self, index: Any) -> Tensor:
        """Some of its elements."""
        return self._replace(
            got=self.got[index], expected=self.expected[index], allowed=self.allowed[index], bound=self.bound[index]
        )

    def fits(self, values: np.ndarray, bound: Any) -> bool:
        """Whether it would pass were these the right values, with a bound of their own, and whether they are others."""
        if not self.got.ndim:
            return self._fits_number(float(values), float(bound))
        bound = np.broadcast_to(bound, values.shape)
        if self.got.size > SAMPLE and not self.sample().may_be(few(values), few(bound)):
            return False
        return self.may_be(values, bound) and self.differs(values, bound)

    def worst_may_be(self, value: float, slack: float) -> bool:
        """Whether the element that is farthest off could be what it is; generous, to refute most at a glance."""
        got = float(self.got.flat[self.worst])
        if not (math.isfinite(got) and math.isfinite(value)):
            return math.isfinite(got) == math.isfinite(value)
        around = 4 * float(self.bound.flat[self.worst]) + 2 * self.smallest + 2 * slack * self.size
        return abs(got - value) <= around + 2 * (slack + self.rounding) * abs(value)

    def _fits_number(self, value: float, bound: float) -> bool:
        got, right = float(self.got), float(self.expected)
        if not math.isfinite(value):
            return not math.isfinite(got) and math.isfinite(right)
        rounded = self.rounding * abs(value) + self.smallest
        return abs(got - value) <= SLACK * bound + rounded and not abs(right - value) <= bound + rounded

    def may_be(self, values: np.ndarray, bound: Any) -> bool:
        """Whether it would pass were these the right values, with a bound of their own."""
        return bool(near(self.got, values, self._around(values, bound), undefined_alike=True).all())

    def differs(self, values: np.ndarray, bound: Any) -> bool:
        """Whether values are others than the right ones."""
        return not near(self.expected, values, self._around(values, bound), undefined_alike=True).all()

    def _around(self, values: np.ndarray, bound: Any) -> np.ndarray:
        size = np.abs(np.where(np.isfinite(values), values, 0.0))
        return np.asarray(SLACK * bound + self.rounding * size + self.smallest)


def tensor_of(name: str, given: Elements, dtype: Any) -> Tensor:
    """A tensor of its elements."""
    numbers = np.isfinite(given.right) & (given.right != 0)
    relative = given.ulp[numbers] / np.abs(given.right[numbers])
    # An ulp is between half and all of the type's epsilon; without a number, it is that of the coarsest type.
    rounding = 2 * float(relative.min(initial=2.0**-8))
    bound = np.maximum(given.allowed - given.ulp, 0.0)
    smallest, largest = float(given.ulp.min(initial=np.inf)), float(FLOATS[np.dtype(dtype)].max)
    with np.errstate(all="ignore"):
        error = np.abs(given.got - given.right)
    undefined = np.isfinite(given.got) != np.isfinite(given.right)
    worst = int(np.argmax(np.where(undefined, np.inf, np.nan_to_num(error)))) if error.size else 0
    size = float(np.max(np.abs(given.right), initial=0.0, where=np.isfinite(given.right)))
    return Tensor(name, given.got, given.right, given.allowed, bound, rounding, smallest, largest, worst, size)


def few(values: np.ndarray) -> np.ndarray:
    """Some of many elements."""
    return np.asarray(values.reshape(-1)[:: max(values.size // SAMPLE, 1)])


def near(got: np.ndarray, values: np.ndarray, allowed: Any, *, undefined_alike: bool = False) -> np.ndarray:
    """Which elements are within what is allowed; whether an overflow becomes infinite or NaN may be all the same."""
    same = (got == values) | (np.isnan(got) & np.isnan(values))
    if undefined_alike:
        same |= ~np.isfinite(got) & ~np.isfinite(values)
    return np.asarray(same | (np.abs(got - values) <= allowed))
