"""What drawn cases are made of, whoever chooses: Hypothesis, which looks for trouble and shrinks, or a seed.

Values come from seeds and a few words (kind, layout, option), so that drawing is cheap and an example shrinks to few
rows, zeros and defaults: seed 0 stands for zeros, and the first of several words is the plainest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from refloss.cases.source import DTYPES, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _improbable(noise: np.ndarray, axis: int) -> np.ndarray:
    """One class of each row is 110 and more above all others: their probabilities are below float32's least number."""
    largest = noise == noise.max(axis, keepdims=True, initial=-np.inf)
    return np.where(largest, noise + 60.0, np.clip(3.0 * noise - 60.0, -100.0, -50.0))


def _apart(noise: np.ndarray, axis: int) -> np.ndarray:
    """Rows whose maxima are 200 apart, as their first elements have one sign or the other."""
    return noise + np.where(noise.take([0] if noise.shape[axis] else [], axis) > 0.0, 100.0, -100.0)


# How logits differ from noise of variance 1. The second argument is the axis of classes.
_KINDS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "ordinary": lambda noise, _: 3.0 * noise,
    "ties": lambda noise, _: np.round(noise),
    "confident": lambda noise, axis: np.where(noise == noise.max(axis, keepdims=True, initial=-np.inf), 40.0, noise),
    "offset": lambda noise, _: noise + 1e4,
    "improbable": _improbable,
    "apart": _apart,
    "saturated": lambda noise, _: np.clip(20.0 * np.round(2.0 * noise), -100.0, 100.0),
    "tiny": lambda noise, _: noise * 2.0**-130,
    "huge": lambda noise, _: noise * 1e37,
}
_EXTREME = ("tiny", "huge")
_NEAR = ("ordinary", "ties")
_EXACT = (*_NEAR, "improbable", "apart", "saturated")
SHARES = {"none": 0.0, "some": 0.25, "many": 0.75, "all": 1.0}  # of rows that are ignored
# What exact logits are multiples of: sums of one and a power of two up to 128 have no more digits than each type holds.
_GRIDS = {"float64": 2.0**-20, "float32": 2.0**-10, "float16": 2.0**-3, "bfloat16": 1.0}
_LABEL_DTYPES = (np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint8)
# Numbers of classes, or of elements of a row, by the name of a profile; "few" are as many as there may be at most.
# Kernels take 1024, 4096 or 65536 at a time: less than a block, one more, and several with a tail.
SIZES: dict[str, tuple[int, ...]] = {"few": (), "blocks": (1025, 4097, 1, 2, 50257)}
_SIDES = (67, 131, 1, 2)  # of images in place of these: more than a tile, and a tail
_LEFT_OUT = object()


class Limits(NamedTuple):
    """What a caller wants of all cases.

    dtypes: of inputs that have gradients.
    max_rows, max_classes: the most rows, and classes or elements of a row.
    extreme: whether values may overflow, be lost, or be NaN in rows that do not count.
    exact: whether rows may be taken apart, put together, and have constants added to their logits without rounding:
        logits are multiples of a power of two, sizes are the largest that are allowed, some row counts, arrays are
        contiguous, and of what may be left out only a weight is given.
    sizes: numbers of classes, or of elements of a row, to choose from instead, such as those of SIZES.
    """

    dtypes: tuple[str, ...] = tuple(DTYPES)
    max_rows: int = 6
    max_classes: int = 6
    extreme: bool = True
    exact: bool = False
    sizes: tuple[int, ...] = ()


class Drawn(NamedTuple):
    """A case without its cotangent, unless it has one; loss_shape is that of a loss which is not reduced."""

    inputs: dict[str, Any]
    parameters: dict[str, Any]
    loss_shape: tuple[int, ...] = ()
    cotangent: Any = None


class Tried(Protocol):
    """A parameter, and which of its values are worth trying."""

    @property
    def values(self) -> tuple[Any, ...]:
        """The plainest comes first."""


class Chooser(Protocol):
    """Who decides."""

    def one_of(self, options: tuple[Any, ...]) -> Any:
        """One of several options, the plainest of which comes first."""

    def between(self, low: int, high: int) -> int:
        """An integer from low to high."""


class Seeded:
    """A chooser whose choices follow from a seed, the same on every machine.

    Args:
        seed: of all choices.
        plainness: how often the plainest option is taken, beside the times that all of them are as likely.
    """

    def __init__(self, seed: int, plainness: float = 0.5) -> None:
        self._source = Source(seed)
        self._plainness = plainness

    def one_of(self, options: tuple[Any, ...]) -> Any:
        """One of several options."""
        if float(self._source.uniform(1)[0]) < self._plainness:
            return options[0]
        return options[self.between(0, len(options) - 1)]

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, each as likely as another."""
        return low + int(self._source.integers(high + 1 - low, 1)[0])


class Draws:
    """What cases are made of."""

    def __init__(self, chooser: Chooser, limits: Limits, given: Mapping[str, Any] | None = None) -> None:
        """given holds values of parameters, where there are such."""
        self._chooser, self._given = chooser, given or {}
        self.limits = limits
        self._dtype_name = self.one_of(*limits.dtypes)
        self.dtype = DTYPES[self._dtype_name]

    def one_of(self, *options: Any) -> Any:
        """One of several options, the plainest of which comes first."""
        return self._chooser.one_of(options)

    def maybe(self) -> bool:
        """Whether something out of the ordinary is to happen."""
        return bool(self.one_of(False, True))

    def size(self, low: int, high: int) -> int:
        """A number of things."""
        return self._chooser.between(low, max(low, high))

    def options(self, **choices: tuple[Any, ...]) -> dict[str, Any]:
        """Parameters by name; one that is left out has its default."""
        chosen = {
            name: self._given[name] if name in self._given else self.one_of(_LEFT_OUT, *values)
            for name, values in choices.items()
        }
        return {name: value for name, value in chosen.items() if value is not _LEFT_OUT}

    def parameters(self, specified: Mapping[str, Tried]) -> dict[str, Any]:
        """Some of the values that a specification says are worth trying."""
        return self.options(**{name: parameter.values for name, parameter in specified.items() if parameter.values})

    def rows(self) -> int:
        """How many rows there are."""
        return self.limits.max_rows if self.limits.exact else self.size(0, self.limits.max_rows)

    def classes(self, low: int = 1, high: int = 2**31) -> int:
        """How many classes there are; low and high are for sizes of a profile."""
        if self.limits.sizes:
            return int(self.one_of(*([size for size in self.limits.sizes if low <= size <= high] or [low])))
        return self.few_classes(low)

    def few_classes(self, low: int = 1) -> int:
        """How many classes there are, where there are pixels or texts beside them, whatever the profile."""
        return self.limits.max_classes if self.limits.exact else self.size(low, self.limits.max_classes)

    def side(self, most: int) -> int:
        """How many pixels an image is high or wide."""
        return int(self.one_of(*_SIDES)) if self.limits.sizes else self.size(1, most)

    def pairs(self) -> int:
        """How many pairs there are, each of which is compared with each."""
        if self.limits.exact or self.limits.sizes:
            return self.limits.max_rows if self.limits.exact else self.side(self.limits.max_rows)
        return self.size(0, self.limits.max_rows)

    def row_shape(self, low: int = 0, high: int = 3) -> tuple[int, ...]:
        """Axes whose product is at most max_rows; only the first can be empty."""
        if self.limits.exact:
            return (self.rows(), *(2,) * (self.size(max(low, 1), min(high, 2)) - 1))
        axes: tuple[int, ...] = ()
        for i in range(self.size(low, high)):
            most = self.limits.max_rows // max(1, int(np.prod(axes)))
            axes += (self.size(min(i, 1), most),)
        return axes

    def elements(self, axes: int = 0) -> tuple[int, ...]:
        """The shape of arrays of corresponding elements, with at least so many axes."""
        if self.limits.exact:
            return self.rows(), self.classes()
        rows = self.row_shape(max(axes - 1, 0), 2)
        return (*rows, self.classes()) if len(rows) < axes or self.limits.sizes or self.maybe() else rows

    def _seed(self) -> int:
        return self._chooser.between(0, 2**16)

    def noise(self, *shape: int) -> np.ndarray:
        """Zeros, or roughly normal values of variance 1."""
        seed = self._seed()
        return Source(seed).normal(*shape) if seed else np.zeros(shape)

    def uniform(self, *shape: int) -> np.ndarray:
        """Zeros, or values in [0, 1)."""
        seed = self._seed()
        return Source(seed).uniform(*shape) if seed else np.zeros(shape)

    def cast(self, values: np.ndarray) -> np.ndarray:
        """Finite values in the case's dtype."""
        largest = float(ml_dtypes.finfo(self.dtype).max)  # type: ignore[no-untyped-call]
        return np.asarray(np.clip(values, -largest, largest), self.dtype)

    def logits(self, *shape: int, axis: int = -1, near: bool = False) -> np.ndarray:
        """Real values of one kind; near 0 if they are to be."""
        kinds = _NEAR if near else _EXACT if self.limits.exact else (*_KINDS,)
        kind = self.one_of(*(kind for kind in kinds if kind not in _EXTREME or self.limits.extreme))
        values = _KINDS[kind](self.noise(*shape), axis) if shape else 3.0 * self.noise()
        if self.limits.exact:
            grid = _GRIDS[self._dtype_name]
            values = np.round(values / grid) * grid
        return self.cast(values)

    def probabilities(self, *shape: int, ends: bool = False) -> np.ndarray:
        """Values from 0 to 1: soft, hard, next to 0, or some next to 0 and all others 1.

        Where they are to be exact, sixteenths, or 0 and 1 where ends are.
        """
        if self.limits.exact and ends and self.maybe():
            return self.cast(np.round(self.uniform(*shape)))
        if self.limits.exact:
            return self.cast((1.0 + np.floor(15.0 * self.uniform(*shape))) / 16.0)
        kind, values = self.one_of("soft", "hard", "small", "rare"), self.uniform(*shape)
        rare = np.where(values < 0.5, values * 2.0**-100, 1.0)
        return self.cast({"soft": values, "hard": np.round(values), "small": values * 2.0**-20, "rare": rare}[kind])

    def signs(self, *shape: int) -> np.ndarray:
        """1 or −1; if they need not be exact, some are 0, a half, or 3."""
        values = np.where(self.uniform(*shape) < 0.5, 1.0, -1.0)
        if not self.limits.exact and self.maybe():
            others = np.array([0.0, 0.5, -0.5, 3.0])[(4.0 * self.uniform(*shape)).astype(int)]
            values = np.where(self.uniform(*shape) < 0.25, others, values)
        return self.cast(values)

    def log_probabilities(self, *shape: int, near: bool = False) -> np.ndarray:
        """Values up to 0; near it if they are to be."""
        values: np.ndarray = -np.abs(self.logits(*shape, near=near))
        return values

    def weights(self, *shape: int) -> np.ndarray:
        """Positive values, in the case's dtype or in float64."""
        values: np.ndarray = 0.25 + 2.0 * self.uniform(*shape)
        return values if not self.limits.exact and self.maybe() else self.cast(values)

    def near(self, values: np.ndarray) -> np.ndarray:
        """Those of some values, or next to them: where a difference of both loses most or all of its digits."""
        apart = self.one_of(0.0, 2.0**-10, -(2.0**-18), 2.0**-24)
        return self.cast(np.asarray(values, np.float64) * (1.0 + apart * self.noise(*np.shape(values))))

    def class_weights(self, classes: int) -> np.ndarray:
        """Factors of classes, some of which may be 0."""
        weight = self.weights(classes)
        if not self.limits.exact:
            weight[: self.size(0, classes)] *= self.one_of(1.0, 0.0)
        return weight

    def labels(self, shape: tuple[int, ...], classes: int, ignore_index: int) -> np.ndarray:
        """Classes, of which none, some or all are ignored, in an integer dtype that holds them."""
        labels = (self.uniform(*shape) * classes).astype(np.int64)
        labels = np.where(self.ignored(shape), ignore_index, labels)
        if self.limits.exact and labels.flat[-1] == ignore_index:
            labels.flat[-1] = (ignore_index + 1) % classes
        return self.integers(labels)

    def ignored(self, shape: tuple[int, ...]) -> np.ndarray:
        """Which rows do not count: none, some or all; if they may be taken apart, the last one does."""
        share = self.one_of(*(("none", "some") if self.limits.exact else SHARES))
        ignored = self.uniform(*shape) < SHARES[share] if share != "none" else np.zeros(shape, bool)
        if self.limits.exact and shape:
            ignored.flat[-1] = False
        return ignored

    def integers(self, values: np.ndarray) -> np.ndarray:
        """The same in an integer dtype that holds them."""
        low, high = (int(end) for end in (values.min(initial=0), values.max(initial=0)))
        dtypes = _LABEL_DTYPES[:1] if self.limits.exact else _LABEL_DTYPES
        return values.astype(
            self.one_of(*(dtype for dtype in dtypes if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max))
        )

    def adverse(self, logits: np.ndarray, axis: int, asked: np.ndarray, ignored: np.ndarray, *, masks: bool) -> None:
        """Make rows sure, put −inf where no row asks for a class, and what must not leak into rows that are ignored."""
        rows = np.moveaxis(logits, axis, -1)
        if self.limits.exact and self.maybe():
            rows[~ignored, asked[~ignored]] = 8.0  # what is left of their losses, float64 still has to many digits
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
        if self.limits.exact:
            number = float(self.one_of(-1.5, 1.0, -0.75, 3.0))
            return number * (2.0 * np.floor(4.0 * self.uniform(*shape)) - 3.0) if shape else number
        # Products with thirds, tenths and sevenths come next to ties, which a second rounding takes for ties.
        number = float(self.one_of(1.0, -0.75, 3.0, -1e4, 2.0**-20, 0.0, 1 / 3, -0.1, 1 / 7))
        return number * (1.0 + self.noise(*shape)) if shape and self.maybe() else number
