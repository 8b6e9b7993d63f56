"""Golden cases of losses of corresponding elements whose arrays, two or three, have ranges of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.elements import LONG
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable

_REDUCTIONS = ("mean", "sum", "none")


class _Function(NamedTuple):
    """Cases of a function: its name, and its arguments'."""

    name: str
    arguments: tuple[str, ...]

    def case(
        self, name: str, values: tuple[Any, ...], *, grad_output: Any = 1.0, dtype: Any = np.float64, **given: Any
    ) -> Case:
        """A case of values in a format."""
        inputs = {key: np.asarray(array, dtype) for key, array in zip(self.arguments, values, strict=True)}
        return Case(f"{self.name}-{name}", self.name, inputs, given, grad_output)

    def usual(self, source: Source, small: tuple[Any, ...], long: Callable[..., tuple[Any, ...]]) -> list[Case]:
        """What every loss of elements has: each format and reduction, one element, and more than a block of them."""
        shape = np.shape(small[0])
        one = tuple(array[:1, 0] for array in small)
        return [
            *(self.case(f"{name}-mean", small, dtype=dtype, grad_output=-0.75) for name, dtype in DTYPES.items()),
            self.case("sum", small, reduction="sum", grad_output=0.3, dtype=np.float32),
            self.case("none", small, reduction="none", grad_output=source.normal(*shape), dtype=np.float32),
            self.case("sum-large-cotangent", small, reduction="sum", grad_output=-1e6, dtype=np.float32),
            self.case("one-element", one, grad_output=2.0, dtype=np.float32),
            *(in_format(self._long(source, long, size), name) for name, size in LONG),
        ]

    def _long(self, source: Source, long: Callable[..., tuple[Any, ...]], shape: tuple[int, ...]) -> Case:
        count = int(np.prod(shape))
        return self.case(f"elements-{count}", long(source, *shape), grad_output=-1.5 * count)

    def options(self, name: str, values: tuple[Any, ...], *reductions: str, seed: int, **given: Any) -> list[Case]:
        """Options in every format, by reduction."""
        shape = np.broadcast_shapes(*map(np.shape, values[:2]))
        return in_every_format(
            self.case(
                f"options-{name}-{reduction}",
                values,
                reduction=reduction,
                grad_output=-2.5 * (Source(seed).normal(*shape) if reduction == "none" else 1.0),
                **given,
            )
            for reduction in reductions
        )


def _drawn_ranks(source: Source, *shape: int) -> tuple[np.ndarray, ...]:
    x, z = source.normal(*shape) * 2.0, source.normal(*shape) * 2.0
    return x, z, np.where(source.uniform(*shape) < 0.5, -1.0, 1.0)


def ranked(seed: int) -> Callable[[str], list[Case]]:
    """Of margin_ranking: pairs in and out of order, at the hinge and next to it, and targets that are factors."""

    def build(function: str) -> list[Case]:
        of, source = _Function(function, ("input1", "input2", "target")), Source(seed)
        x, z, y = small = _drawn_ranks(source, 4, 7)
        # Quarters: distances of the margin itself, and of 2^-6 more and less, in every format.
        ends = np.round(z * 4.0) / 4.0
        at_hinge = ends + y * (0.5 + np.array([0.0, 0.0, 0.015625, -0.015625, 1.0, -1.0, 0.25]))
        factors = np.round(source.normal(4, 7) * 4.0) / 4.0
        tied = of.case("tied", (ends, ends, y), reduction="none", grad_output=source.normal(4, 7))
        return [
            *of.usual(source, small, _drawn_ranks),
            *of.options("margin", (at_hinge, ends, y), *_REDUCTIONS, seed=210, margin=0.5),
            *of.options("factors", (x, z, factors), "none", seed=211, margin=0.25),
            *in_every_format([tied]),
            of.case("negative-margin", (x, z, y), margin=-0.75, grad_output=1.5, dtype=np.float32),
        ]

    return build


def spread(uniform: np.ndarray, *, exact: bool = False) -> np.ndarray:
    """Variances from 1/16 to 8 of uniform numbers, most of them small; multiples of an eighth if they are to be."""
    return np.round(8.0 * uniform + 0.5) / 4.0 + 0.125 if exact else 0.0625 + 8.0 * uniform * uniform * uniform


def _drawn_variances(source: Source, *shape: int) -> tuple[np.ndarray, ...]:
    return source.normal(*shape) * 2.0, source.normal(*shape) * 2.0, spread(source.uniform(*shape))


def likely(seed: int) -> Callable[[str], list[Case]]:
    """Of gaussian_nll: variances that elements share, that are below the least one, and squared distances."""

    def build(function: str) -> list[Case]:
        of, source = _Function(function, ("input", "target", "var")), Source(seed)
        x, t, v = small = _drawn_variances(source, 4, 7)
        # Quarters, whose squares every format holds; where there is no distance, any variance.
        quarters = np.round(t * 4.0) / 4.0
        steps = (np.arange(28) - 14).reshape(4, 7) / 4.0
        squares = np.where(steps == 0.0, 2.0, steps * steps)
        shared = {"last": v[:, :1], "lacking": v[:, 0], "first": v[:1], "all": v[0, 0]}
        return [
            *of.usual(source, small, _drawn_variances),
            *of.options("full", small, *_REDUCTIONS, seed=212, full=True, eps=0.25),
            *of.options("small", (x, t, v - 0.0625), "none", seed=213, eps=2.0),
            *of.options("squares", (quarters + steps, quarters, squares), "none", seed=214, full=True),
            *(
                case
                for k, (name, narrow) in enumerate(shared.items())
                for case in of.options(f"shared-{name}", (x, t, narrow), _REDUCTIONS[k % 3], seed=215 + k)
            ),
            of.case("hit", (t, t, v), grad_output=-1.5, dtype=np.float32),
            *(
                case
                for k, (name, narrow) in enumerate({"last": t[:, :1], "lacking": t[0], "all": t[0, 0]}.items())
                for case in of.options(f"target-{name}", (x, narrow, v[:, 0]), _REDUCTIONS[k], seed=226 + k)
            ),
            *of.options("target-larger", (x[0], t, v[0]), "none", seed=229, full=True),
        ]

    return build


def _drawn_counts(source: Source, *shape: int) -> tuple[np.ndarray, ...]:
    return source.normal(*shape) * 1.5, np.round(6.0 * source.uniform(*shape) * source.uniform(*shape))


def _drawn_rates(source: Source, *shape: int) -> tuple[np.ndarray, ...]:
    return 0.125 + 6.0 * source.uniform(*shape), np.round(6.0 * source.uniform(*shape))


def counted(seed: int) -> Callable[[str], list[Case]]:
    """Of poisson_nll: counts of 0, 1 and more, logarithms of rates and rates, near what is counted and far from it."""

    def build(function: str) -> list[Case]:
        of, source = _Function(function, ("input", "target")), Source(seed)
        small, rates = _drawn_counts(source, 4, 7), _drawn_rates(source, 4, 7)
        x, t = np.clip(small[0], -3.0, 3.0), np.array([0.0, 1.0, 2.0, 8.0, 1.5, 0.25, 30.0]) * np.ones((4, 1))
        hit = np.maximum(rates[1], 0.5)
        return [
            *of.usual(source, small, _drawn_counts),
            *of.options("full", (x, t), *_REDUCTIONS, seed=220, full=True),
            *of.options("rates", (rates[0], t), *_REDUCTIONS, seed=221, log_input=False, full=True, eps=0.25),
            *of.options("small-rates", (rates[0] / 64.0, small[1]), "none", seed=222, log_input=False, eps=0.0625),
            of.case("rates-mean", rates, log_input=False, grad_output=1.5, dtype=np.float32),
            of.case("rates-hit", (hit, hit), log_input=False, reduction="none", grad_output=x, dtype=np.float64),
        ]

    return build
