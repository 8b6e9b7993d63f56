"""Cases of losses of an input and a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.cases import Case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.cases import Layout

COTANGENT = -3.5
REDUCTIONS = ("mean", "sum", "none")
LAYOUTS: tuple[Layout, ...] = ("strided", "transposed")
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("soft_margin", {}),
    ("hinge_embedding", {}),
    ("hinge_embedding", {"margin": 0.375}),
    ("hinge_embedding", {"margin": -1.5}),
)


def _case(loss: str, name: str, x: Any, y: Any, *, degenerate: bool = False, **options: Any) -> Case:
    layout = options.pop("layout", "contiguous")
    inputs = {"input": np.asarray(x, float), "target": np.asarray(y, float)}
    shape = inputs["input"].shape if options.get("reduction") == "none" else ()
    cotangent = np.random.default_rng(len(name)).standard_normal(shape) if shape else COTANGENT
    return Case(f"{loss}-{name}", loss, inputs, options, cotangent, layout, degenerate)


def _shapes() -> Iterator[Case]:
    random = np.random.default_rng(41)
    for loss, options in VARIANTS:
        words = "".join(f"-{name}_{value}" for name, value in options.items())
        x, sign = 3 * random.standard_normal((4, 3, 5)), random.choice([1.0, -1.0], (4, 3, 5))
        other = np.where(random.random((4, 3, 5)) < 0.3, random.standard_normal((4, 3, 5)), sign)
        for reduction in REDUCTIONS:
            chosen = {**options, "reduction": reduction}
            yield _case(loss, f"{reduction}{words}", x, sign, **chosen)
            yield _case(loss, f"any_target-{reduction}{words}", x, other, **chosen)
            yield _case(loss, f"number-{reduction}{words}", 0.75, -1.0, **chosen)
            yield _case(loss, f"empty-{reduction}{words}", x[:0], sign[:0], degenerate=True, **chosen)
        for layout in LAYOUTS:
            yield _case(loss, f"{layout}{words}", x, sign, reduction="none", layout=layout, **options)


def _edges() -> Iterator[Case]:
    """Kinks, what overflows nowhere, and what is not finite."""
    yield _case("soft_margin", "far", [80.0, 1000.0, -60.0, 30.0], [1.0, 1.0, 1.0, -2.0], reduction="none")
    yield _case("soft_margin", "infinite", [np.inf, np.nan], [1.0, 1.0], reduction="none", degenerate=True)
    x = [0.5, 0.5, 0.5, -2.0, -2.0, 3.0, 0.25]
    y = [1.0, -1.0, 0.5, -1.0, 1.0, 0.0, 1.0078125]
    yield _case("hinge_embedding", "kinks", x, y, reduction="none", margin=0.5)
    special, signs = np.meshgrid([np.inf, -np.inf, np.nan, 0.5], [1.0, -1.0, 0.0, np.nan])
    yield _case("hinge_embedding", "not_finite", special, signs, reduction="none", degenerate=True)


CASES: tuple[Case, ...] = (*_shapes(), *_edges())
