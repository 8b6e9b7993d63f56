"""What drawn cases are made of.

Values come from seeds and a few words (kind, layout, option), so that drawing is cheap and an example shrinks to few
rows, zeros and defaults: seed 0 stands for zeros, and the first of several words is the plainest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from refloss.cases.source import DTYPES, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis.strategies import DrawFn

# How logits differ from noise of variance 1. The second argument is the axis of classes.
_KINDS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "ordinary": lambda noise, _: 3.0 * noise,
    "ties": lambda noise, _: np.round(noise),
    "confident": lambda noise, axis: np.where(noise == noise.max(axis, keepdims=True, initial=-np.inf), 40.0, noise),
    "offset": lambda noise, _: noise + 1e4,
    "tiny": lambda noise, _: noise * 2.0**-130,
    "huge": lambda noise, _: noise * 1e37,
}
_EXTREME = ("tiny", "huge")
SHARES = {"none": 0.0, "some": 0.25, "many": 0.75, "all": 1.0}  # of rows that are ignored
_LABEL_DTYPES = (np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint8)


class Limits(NamedTuple):
    """What a caller wants of all cases."""

    dtypes: tuple[str, ...]
    max_rows: int
    max_classes: int
    extreme: bool


class Draws:
    """What cases are made of."""

    def __init__(self, draw: DrawFn, limits: Limits) -> None:
        self._draw = draw
        self.limits = limits
        self.dtype = DTYPES[self.one_of(*limits.dtypes)]

    def one_of(self, *options: Any) -> Any:
        """One of several options, the plainest of which comes first."""
        return self._draw(st.sampled_from(options))

    def maybe(self) -> bool:
        """Whether something out of the ordinary is to happen."""
        return self._draw(st.booleans())

    def size(self, low: int, high: int) -> int:
        """A number of things."""
        return self._draw(st.integers(low, max(low, high)))

    def options(self, **choices: tuple[Any, ...]) -> dict[str, Any]:
        """Parameters by name; one that is left out has its default."""
        return {name: self.one_of(*values) for name, values in choices.items() if self.maybe()}

    def classes(self, low: int = 1) -> int:
        """How many classes there are."""
        return self.size(low, self.limits.max_classes)

    def row_shape(self, low: int = 0, high: int = 3) -> tuple[int, ...]:
        """Axes whose product is at most max_rows; only the first can be empty."""
        axes: tuple[int, ...] = ()
        for i in range(self.size(low, high)):
            axes += (self.size(min(i, 1), self.limits.max_rows // max(1, int(np.prod(axes)))),)
        return axes

    def noise(self, *shape: int) -> np.ndarray:
        """Zeros, or roughly normal values of variance 1."""
        seed = self._draw(st.integers(0, 2**16))
        return Source(seed).normal(*shape) if seed else np.zeros(shape)

    def uniform(self, *shape: int) -> np.ndarray:
        """Zeros, or values in [0, 1)."""
        seed = self._draw(st.integers(0, 2**16))
        return Source(seed).uniform(*shape) if seed else np.zeros(shape)

    def cast(self, values: np.ndarray) -> np.ndarray:
        """Finite values in the case's dtype."""
        largest = float(ml_dtypes.finfo(self.dtype).max)  # type: ignore[no-untyped-call]
        return np.asarray(np.clip(values, -largest, largest), self.dtype)

    def logits(self, *shape: int, axis: int = -1) -> np.ndarray:
        """Real values of one kind."""
        kind = self.one_of(*(kind for kind in _KINDS if kind not in _EXTREME or self.limits.extreme))
        return self.cast(_KINDS[kind](self.noise(*shape), axis) if shape else 3.0 * self.noise())

    def probabilities(self, *shape: int) -> np.ndarray:
        """Values from 0 to 1: soft, hard, or next to 0."""
        kind, values = self.one_of("soft", "hard", "small"), self.uniform(*shape)
        return self.cast({"soft": values, "hard": np.round(values), "small": values * 2.0**-20}[kind])

    def weights(self, *shape: int) -> np.ndarray:
        """Positive values."""
        return self.cast(0.25 + 2.0 * self.uniform(*shape))

    def labels(self, shape: tuple[int, ...], classes: int, ignore_index: int) -> np.ndarray:
        """Classes, of which none, some or all are ignored, in an integer dtype that holds them."""
        labels = (self.uniform(*shape) * classes).astype(np.int64)
        ignored = self.one_of(*SHARES)
        if ignored != "none":
            labels = np.where(self.uniform(*shape) < SHARES[ignored], ignore_index, labels)
        return self.integers(labels)

    def integers(self, values: np.ndarray) -> np.ndarray:
        """The same in an integer dtype that holds them."""
        low, high = (int(end) for end in (values.min(initial=0), values.max(initial=0)))
        kinds = [kind for kind in _LABEL_DTYPES if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
        return values.astype(self.one_of(*kinds))

    def adverse(self, logits: np.ndarray, axis: int, asked: np.ndarray, ignored: np.ndarray, *, masks: bool) -> None:
        """Put −inf where no row asks for a class, and what must not leak into rows that are ignored."""
        rows = np.moveaxis(logits, axis, -1)
        if masks and rows.shape[-1] > 1 and self.maybe():
            absent = self.size(0, rows.shape[-1] - 1)
            rows[asked != absent, absent] = -np.inf
        if self.limits.extreme and self.maybe():
            rows[ignored] = self.one_of(np.nan, np.inf, -np.inf)

    def boxes(self, *shape: int) -> np.ndarray:
        """Centres and sizes, float64: on a grid, where edges coincide, or anywhere."""
        on_grid, values = self.maybe(), self.uniform(*shape, 4)
        values = np.round(4.0 * values) / 4.0 if on_grid else values
        return np.concatenate([values[..., :2], 0.125 + 0.5 * values[..., 2:]], axis=-1)

    def cotangent(self, shape: tuple[int, ...]) -> float | np.ndarray:
        """A signed number, or one for each element of the loss."""
        number = float(self.one_of(1.0, -0.75, 3.0, -1e4, 2.0**-20, 0.0))
        return number * (1.0 + self.noise(*shape)) if shape and self.maybe() else number
