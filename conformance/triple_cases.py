"""Cases of the losses of three arrays of corresponding elements, and of counts."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.cases import Array, Case, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REDUCTIONS = ("mean", "sum", "none")
SHAPE = (4, 3, 5)
LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided", "transposed")
VARIANTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("margin_ranking", {}),
    ("margin_ranking", {"margin": 0.375}),
    ("margin_ranking", {"margin": -0.25}),
    ("gaussian_nll", {}),
    ("gaussian_nll", {"full": True, "eps": 0.5}),
    ("poisson_nll", {}),
    ("poisson_nll", {"full": True}),
    ("poisson_nll", {"log_input": False}),
    ("poisson_nll", {"log_input": False, "full": True, "eps": 0.5}),
)
ARGUMENTS = {
    "margin_ranking": ("input1", "input2", "target"),
    "gaussian_nll": ("input", "target", "var"),
    "poisson_nll": ("input", "target"),
}


def _ranks(random: np.random.Generator, shape: tuple[int, ...]) -> list[Array]:
    if not shape:  # a gradient that is not 0
        return [np.asarray(value) for value in (0.25, 1.0, 1.0)]
    x, z = np.asarray(2 * random.standard_normal(shape)), np.asarray(random.standard_normal(shape))
    return [x, z, np.asarray(random.choice([-1.0, 1.0, 0.5], shape))]


def _variances(random: np.random.Generator, shape: tuple[int, ...]) -> list[Array]:
    if not shape:
        return [np.asarray(value) for value in (0.75, -1.0, 0.5)]
    x, t = np.asarray(2 * random.standard_normal(shape)), np.asarray(random.standard_normal(shape))
    return [x, t, np.asarray(random.uniform(0.25, 2.0, shape))]


def _counts(random: np.random.Generator, shape: tuple[int, ...]) -> list[Array]:
    """Positive, for rates and for logarithms of rates."""
    if not shape:
        return [np.asarray(value) for value in (0.75, 4.0)]
    return [np.asarray(random.uniform(0.25, 2.5, shape)), np.asarray(random.integers(1, 9, shape) * 0.75)]


DRAWS = {"margin_ranking": _ranks, "gaussian_nll": _variances, "poisson_nll": _counts}


def _case(
    random: np.random.Generator,
    loss: str,
    name: str,
    inputs: list[Array],
    *,
    layout: Layout = "contiguous",
    degenerate: bool = False,
    **options: Any,
) -> Case:
    cotangent: Any = -3.5
    shape = np.broadcast_shapes(inputs[0].shape, inputs[1].shape)
    if options.get("reduction") == "none" and shape:
        cotangent = np.asarray(random.standard_normal(shape))
    arguments = dict(zip(ARGUMENTS[loss], inputs, strict=True))
    return Case(f"{loss}-{name}", loss, arguments, options, cotangent, layout, degenerate)


def _shapes() -> Iterator[Case]:
    """Every option with every reduction: without axes, empty, and in every layout."""
    random = np.random.default_rng(41)
    for (loss, options), reduction in product(VARIANTS, REDUCTIONS):
        words = "".join(f"-{name}_{value}" for name, value in options.items())
        chosen = {**options, "reduction": reduction}
        yield _case(random, loss, f"number-{reduction}{words}", DRAWS[loss](random, ()), **chosen)
        empty = DRAWS[loss](random, (0, 3))
        yield _case(random, loss, f"empty-{reduction}{words}", empty, degenerate=True, **chosen)
        for layout in LAYOUTS:
            inputs = DRAWS[loss](random, SHAPE)
            yield _case(random, loss, f"{layout}-{reduction}{words}", inputs, layout=layout, **chosen)


def _edges() -> Iterator[Case]:
    """The hinge, on both sides of it, and what is not finite; numbers that every dtype holds exactly."""
    random = np.random.default_rng(42)
    z = np.array([0.25, -1.0, 0.5, 3.0, -2.0, 0.0, 1.0])
    y = np.array([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0])
    for margin in (0.0, 0.5):
        x = z + y * (margin + np.array([0.0, 0.25, 0.0, -0.25, 1.0, -1.0, 0.0]))
        hinge = [x, z, y]
        yield _case(random, "margin_ranking", f"hinge-{margin}", hinge, reduction="none", margin=margin)
        yield _case(random, "margin_ranking", f"hinge_mean-{margin}", hinge, margin=margin)
    unbounded = [np.array([np.inf, -np.inf, 1.0, np.inf]), np.array([0.0, 1.0, -np.inf, np.inf]), np.ones(4)]
    undefined = [np.array([np.nan, 0.0, 1.0]), np.array([0.0, np.nan, 2.0]), np.array([1.0, 1.0, np.nan])]
    for name, inputs in (("infinite", unbounded), ("undefined", undefined)):
        yield _case(random, "margin_ranking", name, inputs, reduction="none", degenerate=True)


def _shared() -> Iterator[Case]:
    """Variances that elements share, below eps, and of 0 or infinity."""
    random = np.random.default_rng(43)
    for shape, reduction in product(((4, 3, 1), (4, 3), (4, 1, 5), (1, 3, 5)), REDUCTIONS):
        inputs = _variances(random, SHAPE)
        inputs[2] = np.asarray(random.uniform(0.25, 2.0, shape))
        name = f"shared_{'x'.join(map(str, shape))}-{reduction}"
        yield _case(random, "gaussian_nll", name, inputs, reduction=reduction)
    one = [*_variances(random, (7,))[:2], np.asarray(0.75)]
    yield _case(random, "gaussian_nll", "shared_by_all", one)
    x, t = _variances(random, (7,))[:2]
    below = [x, t, np.array([0.0, 1e-9, 0.25, 0.5, 0.75, 1.0, 0.1])]
    yield _case(random, "gaussian_nll", "below", below, reduction="none", eps=0.5)
    yield _case(random, "gaussian_nll", "below-usual", [x, t, np.full(7, 2.0**-24)], reduction="none", eps=2.0**-20)
    nothing = [np.array([0.0, 1.0, 0.0, 1.0, np.inf]), np.zeros(5), np.array([0.0, 0.0, np.inf, np.inf, 1.0])]
    yield _case(random, "gaussian_nll", "nothing", nothing, reduction="none", eps=0.0, degenerate=True)
    undefined = [np.array([np.nan, 0.0, 1.0]), np.array([0.0, np.nan, 0.0]), np.array([1.0, 1.0, np.nan])]
    yield _case(random, "gaussian_nll", "undefined", undefined, reduction="none", degenerate=True)


def _broadcast() -> Iterator[Case]:
    """Targets that elements share, and inputs beside larger targets."""
    random = np.random.default_rng(46)
    shapes: tuple[tuple[tuple[int, ...], ...], ...] = (
        (SHAPE, (4, 3, 1), (4, 3)),
        (SHAPE, (3, 5), SHAPE),
        (SHAPE, (1, 3, 5), (4, 1, 5)),
        (SHAPE, (), (4, 3, 1)),
        ((5,), (2, 5), (5,)),
        ((3, 1), (3, 2), (3,)),
        ((2, 3), (0, 2, 3), (2, 3)),
    )
    for own, reduction in product(shapes, REDUCTIONS):
        inputs = [np.asarray(random.standard_normal(shape)) for shape in own]
        inputs[2] = np.asarray(random.uniform(0.25, 2.0, own[2]))
        name = "broadcast_" + "-".join("x".join(map(str, shape)) for shape in own[:2])
        yield _case(random, "gaussian_nll", f"{name}-{reduction}", inputs, degenerate=0 in own[1], reduction=reduction)


def _counted() -> Iterator[Case]:
    """Counts of 0 and 1, negative logarithms, rates next to 0, and what is not finite."""
    random = np.random.default_rng(44)
    logs, counts = np.array([-3.0, 0.5, 0.0, 2.0, -80.0, 4.0]), np.array([0.0, 1.0, 2.0, 1.5, 3.0, 40.0])
    yield _case(random, "poisson_nll", "logs", [logs, counts], reduction="none")
    yield _case(random, "poisson_nll", "logs-full", [logs, counts - 1.0], reduction="none", full=True)
    small = [np.zeros(6), np.array([-1.0, -0.5, 0.0, 2.0**-20, 0.5, 1.0])]
    yield _case(random, "poisson_nll", "small-full", small, reduction="none", full=True, degenerate=True)
    rates = np.array([0.0, 2.0**-20, 0.5, 1.0, 30.0, 1000.0])
    yield _case(random, "poisson_nll", "rates", [rates, counts], reduction="none", log_input=False, eps=2.0**-10)
    ends = [np.array([np.inf, -np.inf, np.nan, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, np.nan, np.inf])]
    for full, log_input in product((False, True), repeat=2):
        options: dict[str, Any] = {"full": full, "log_input": log_input, "reduction": "none"}
        yield _case(random, "poisson_nll", f"ends-{full}-{log_input}", ends, degenerate=True, **options)
    nothing = [np.array([-0.5, -0.5, -1.0]), np.array([0.0, 2.0, 3.0])]
    options = {"log_input": False, "eps": 0.5, "reduction": "none"}
    yield _case(random, "poisson_nll", "nothing", nothing, degenerate=True, **options)


CASES: tuple[Case, ...] = (*_shapes(), *_edges(), *_shared(), *_broadcast(), *_counted())
