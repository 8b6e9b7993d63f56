"""Cases of the losses of rows of vectors."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.cases import Array, Case, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

REDUCTIONS = ("mean", "sum", "none")
LAYOUTS: tuple[Layout, ...] = ("strided", "transposed")
# torch has these on the CPU for float32 and float64 alone.
WITHOUT_BFLOAT16 = ("multi_margin", "multilabel_margin")


def _case(
    loss: str,
    name: str,
    inputs: dict[str, Array],
    *,
    layout: Layout = "contiguous",
    degenerate: bool = False,
    **options: Any,
) -> Case:
    first = next(iter(inputs.values()))
    rows = np.random.default_rng(len(name)).standard_normal(first.shape[:-1])
    cotangent = rows if options.get("reduction") == "none" and rows.ndim else -3.5
    return Case(f"{loss}-{name}", loss, inputs, options, cotangent, layout, degenerate)


def _multi_margin() -> Iterator[Case]:
    random, loss = np.random.default_rng(51), "multi_margin"
    x, labels, weight = 2 * random.standard_normal((6, 5)), random.integers(0, 5, 6), random.uniform(0.2, 2.0, 5)
    for p, margin, reduction in product((1, 2), (1.0, 0.3, -2.0), REDUCTIONS):
        inputs = {"input": x, "target": labels}
        yield _case(loss, f"{p}-{margin}-{reduction}", inputs, p=p, margin=margin, reduction=reduction)
        yield _case(
            loss, f"{p}-{margin}-{reduction}-weighted", inputs | {"weight": weight}, p=p, margin=margin,
            reduction=reduction,
        )  # fmt: skip
    for layout in LAYOUTS:
        yield _case(loss, layout, {"input": x, "target": labels}, layout=layout)
    for p in (1, 2):
        yield _case(loss, f"one_row-{p}", {"input": x[0], "target": labels[0]}, p=p)
        kinks = np.array([[1.0, 0.0, 2.0, 1.5], [0.0, -1.0, 1.0, -1.0]])
        yield _case(loss, f"kinks-{p}", {"input": kinks, "target": np.array([0, 2])}, p=p)
        odd = np.array([[1.0, np.nan, 2.0], [np.nan, 1.0, 2.0], [0.5, -np.inf, 2.0], [np.inf, 1.0, 0.0]])
        yield _case(loss, f"odd-{p}", {"input": odd, "target": np.array([0, 0, 0, 0])}, p=p, degenerate=True)
        infinite = np.array([[1.0, np.inf, 2.0], [-np.inf, 1.0, 2.0]])
        yield _case(loss, f"infinite-{p}", {"input": infinite, "target": np.array([0, 0])}, p=p, degenerate=True)
    yield _case(loss, "one_class", {"input": x[:, :1], "target": np.zeros(6, np.int64)}, degenerate=True)
    yield _case(loss, "empty", {"input": x[:0], "target": labels[:0]}, reduction="none", degenerate=True)


def _multilabel_margin() -> Iterator[Case]:
    random, loss = np.random.default_rng(52), "multilabel_margin"
    x, target = 2 * random.standard_normal((6, 5)), random.integers(0, 5, (6, 5))
    target[np.arange(6), [0, 1, 2, 3, 4, 2]] = -1
    for reduction in REDUCTIONS:
        yield _case(loss, reduction, {"input": x, "target": target}, reduction=reduction)
    for layout in LAYOUTS:
        yield _case(loss, layout, {"input": x, "target": target}, layout=layout)
    yield _case(loss, "one_row", {"input": x[3], "target": target[3]})
    kinks = np.array([[1.0, 0.0, 2.0, 1.5], [0.0, -1.0, 1.0, -1.0]])
    yield _case(loss, "kinks", {"input": kinks, "target": np.array([[0, 3, -1, 1], [2, 2, 2, -1]])})
    yield _case(loss, "all_targets", {"input": x, "target": np.argsort(x)}, degenerate=True)
    odd = np.array([[1.0, np.nan, 2.0], [np.nan, 1.0, 2.0], [0.5, -np.inf, 2.0], [np.inf, 1.0, 0.0]])
    yield _case(loss, "odd", {"input": odd, "target": np.array([[0, 2, -1]] * 4)}, degenerate=True)
    yield _case(loss, "one_class", {"input": x[:, :1], "target": np.zeros((6, 1), np.int64)}, degenerate=True)
    yield _case(loss, "empty", {"input": x[:0], "target": target[:0]}, reduction="none", degenerate=True)


def _triplet_margin() -> Iterator[Case]:
    random, loss = np.random.default_rng(53), "triplet_margin"
    names = ("anchor", "positive", "negative")
    x = dict(zip(names, random.standard_normal((3, 6, 5)), strict=True))
    for p, swap in product((1.0, 2.0, 3.0, 1.5, 0.5, np.inf), (False, True)):
        yield _case(loss, f"{p}-{swap}", x, p=p, swap=swap)
    for reduction in REDUCTIONS:
        yield _case(loss, reduction, x, reduction=reduction, margin=0.3)
    for layout in LAYOUTS:
        yield _case(loss, layout, x, layout=layout, eps=0.01)
    yield _case(loss, "one_row", {name: values[0] for name, values in x.items()})
    yield _case(loss, "more_axes", {name: values.reshape(2, 3, 5) for name, values in x.items()}, reduction="none")
    short = dict(zip(names, np.array([[[0.0, 0.0]], [[2.0, 0.0]], [[1.0, 1.0]]]), strict=True))
    margin = dict(zip(names, np.array([[[0.0, 0.0]], [[3.0, 4.0]], [[6.0, 0.0]]]), strict=True))
    same = dict.fromkeys(names, np.array([[0.0, 1.0]]))
    for p in (1.0, 2.0, 3.0, np.inf):
        yield _case(loss, f"equal-{p}", short, p=p, eps=0.0, swap=True, degenerate=True)
        yield _case(loss, f"nothing-{p}", same, p=p, eps=0.0, degenerate=True)
        for value in (np.nan, np.inf):
            odd = {
                name: np.where((values == 0) & (name == "positive"), value, values) for name, values in short.items()
            }
            yield _case(loss, f"odd-{p}-{value}", odd, p=p, degenerate=True)
    yield _case(loss, "on_the_margin", margin, eps=0.0, degenerate=True)
    yield _case(loss, "empty", {name: values[:0] for name, values in x.items()}, reduction="none", degenerate=True)


def _cosine_embedding() -> Iterator[Case]:
    random, loss = np.random.default_rng(54), "cosine_embedding"
    first, second = random.standard_normal((2, 6, 5))
    x = {"input1": first, "input2": second + 0.5 * first, "target": np.array([1, -1, 1, -1, -1, 1])}
    for margin, reduction in product((0.0, 0.3, -0.8), REDUCTIONS):
        yield _case(loss, f"{margin}-{reduction}", x, margin=margin, reduction=reduction)
    for layout in LAYOUTS:
        yield _case(loss, layout, x, layout=layout)
    for target in (1, -1):
        row = {name: values[0] for name, values in x.items()} | {"target": np.array(target)}
        yield _case(loss, f"one_row-{target}", row, margin=-0.9)
    targets = np.array([1.0, -1.0, 0.0, 0.5, 2.0, -1.0])
    yield _case(loss, "float_targets", x | {"target": targets}, reduction="none", margin=-0.9)
    unit = {"input1": np.array([[2.0, -1.0], [2.0, 1.0]]), "input2": np.array([[1.0, 2.0], [1.0, 2.0]])}
    for target in (1, -1, 0):
        named = {"target": np.full(2, target)}
        yield _case(loss, f"orthogonal-{target}", unit | named, degenerate=True)
        for value in (np.nan, np.inf):
            odd = {"input1": np.array([[value, 1.0], [2.0, 1.0]]), "input2": unit["input2"]}
            yield _case(loss, f"odd-{value}-{target}", odd | named, reduction="none", degenerate=True)
    empty = {name: values[:0] for name, values in x.items()}
    yield _case(loss, "empty", empty, reduction="none", degenerate=True)


CASES = (*_multi_margin(), *_multilabel_margin(), *_triplet_margin(), *_cosine_embedding())
