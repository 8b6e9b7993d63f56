"""Golden cases of losses of rows of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable

Arrays = dict[str, np.ndarray]
_COTANGENTS = {"mean": -1.5, "sum": 2.0}
# In which format there are how many elements in a row: more than a block of 1024 or 4096, and no multiple of 8.
_LONG = (("float32", 4097), ("bfloat16", 1025), ("float16", 1025), ("float64", 1025))


def _case(function: str, name: str, inputs: Arrays, parameters: dict[str, Any], grad_output: Any) -> Case:
    return Case(f"{function}-{name}", function, inputs, parameters, grad_output)


def of_rows(
    function: str, draw: Callable[[Source, int, int], Arrays], options: tuple[dict[str, Any], ...], *, seed: int
) -> list[Case]:
    """Every reduction with every option in every format, one row, one element, and long rows."""
    rows, size = 5, 7
    found = []
    for k, option in enumerate(options, 1):
        source = Source(seed + k)
        reduction = ("mean", "sum", "none")[k % 3]
        cotangent = _COTANGENTS.get(reduction, source.normal(rows))
        words = "-".join(f"{name}-{value}" for name, value in option.items()) or "plain"
        parameters = option | {"reduction": reduction}
        found.append(_case(function, f"{words}-{reduction}", draw(source, rows, size), parameters, cotangent))
    plain = draw(Source(seed), rows, size)
    source = Source(seed + 50)
    row = {name: array[0] for name, array in draw(source, 1, size).items() if name != "weight"}
    single = draw(source, 4, 1)
    return [
        *(in_format(_case(function, name, plain, {}, -1.5), name)._replace(id=f"{function}-{name}") for name in DTYPES),
        *in_every_format(found),
        _case(function, "one-row", row, {}, -0.75),
        _case(function, "one-element", single, {"reduction": "sum"}, 0.5),
        *(
            in_format(_case(function, f"long-{count}", draw(Source(seed + count), 2, count), {}, 1e3), name)
            for name, count in _LONG
        ),
    ]


def _class_rows(source: Source, rows: int, classes: int) -> Arrays:
    return {
        "input": 2.0 * source.normal(rows, classes),
        "target": source.integers(classes, rows),
        "weight": source.uniform(classes) * 2.0 + 0.25,
    }


def multi_margin(function: str) -> list[Case]:
    """Both powers, margins of either sign, and rows at their margins, far from them, and of classes that are masked."""
    kinks = np.array([[1.0, 0.0, 2.0, 1.5], [0.0, -1.0, 1.0, -1.0], [3.0, 1.0, 0.0, 1.0]])
    inside = np.array([[30.0, 1.0, -2.0], [40.0, 39.5, 2.0]])
    masked = np.array([[0.5, -np.inf, 1.0, 0.25], [-0.5, 2.0, -np.inf, np.inf]])
    labels = np.array([0, 2, 0])
    return [
        *of_rows(
            function,
            _class_rows,
            ({}, {"p": 2}, {"p": 1, "margin": 0.25}, {"p": 2, "margin": 3.0}, {"margin": -0.5}),
            seed=400,
        ),
        *in_every_format([_case(function, "kinks", {"input": kinks, "target": labels}, {}, -3.0)]),
        _case(function, "kinks-squared", {"input": kinks, "target": labels}, {"p": 2}, 1 / 3),
        _case(function, "satisfied", {"input": inside, "target": labels[[0, 0]]}, {"p": 2, "reduction": "sum"}, 2.0),
        _case(
            function,
            "masked",
            {"input": masked.astype(np.float32), "target": np.array([0, 1])},
            {"reduction": "none"},
            np.array([1.5, -0.5]),
        ),
    ]


def _target_rows(source: Source, rows: int, classes: int) -> Arrays:
    """Up to three targets a row, of which one may be named twice, and what does not count."""
    target = source.integers(classes, rows, classes)
    for row in range(rows):
        target[row, min(row % 4, classes - 1)] = -1
    return {"input": 2.0 * source.normal(rows, classes), "target": target}


def multilabel_margin(function: str) -> list[Case]:
    """Rows at their margins, far from them, of all classes and of none."""
    kinks = np.array([[1.0, 0.0, 2.0, 1.5], [0.0, -1.0, 1.0, -1.0], [3.0, 1.0, 0.0, 1.0]])
    named = np.array([[0, 3, -1, -1], [2, 2, -1, 0], [1, 2, 3, 0]])
    nothing, inside = np.full((3, 4), -1), 30.0 * (np.arange(4) < 2) + np.array([[0.0], [1.0], [2.0]])
    masked = np.array([[0.5, -np.inf, 1.0, 0.25], [-0.5, 2.0, -np.inf, 0.5]])
    return [
        *of_rows(function, _target_rows, ({}, {}, {}), seed=450),
        *in_every_format([_case(function, "kinks", {"input": kinks, "target": named}, {}, -3.0)]),
        _case(function, "no-targets", {"input": kinks, "target": nothing}, {"reduction": "sum"}, 2.0),
        _case(function, "satisfied", {"input": inside, "target": np.array([[1, 0, -1, 2]] * 3)}, {}, 2.0),
        _case(function, "masked", {"input": masked.astype(np.float32), "target": named[:2]}, {}, 1.5),
    ]


def _triplets(source: Source, rows: int, size: int) -> Arrays:
    anchor, first, second = (source.normal(rows, size) for _ in range(3))
    return {"anchor": anchor, "positive": anchor + 1.25 * first, "negative": anchor + 0.75 * (first + second)}


def triplet_margin(function: str) -> list[Case]:
    """Every norm, with and without swap; distances that are equal, or 0, or on the margin."""
    anchor = np.array([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [1.0, 1.0]])
    positive = np.array([[3.0, 4.0], [1.0, 2.0], [2.0, 0.0], [1.0, 1.0]])
    negative = np.array([[6.0, 0.0], [4.0, 6.0], [1.0, 1.0], [1.0, 1.0]])
    short = {"anchor": anchor, "positive": positive, "negative": negative}
    close = Source(475).normal(4, 6).astype(np.float32)
    near = (close * (1.0 + 2.0**-18 * Source(476).normal(4, 6))).astype(np.float32)
    parallel = {"anchor": close, "positive": near, "negative": 2.0 * close}
    options: tuple[dict[str, Any], ...] = (
        {"margin": 0.5},
        {"p": 1.0},
        {"swap": True},
        {"p": 3.0, "swap": True},
        {"p": 1.5, "eps": 0.0625},
    )
    return [
        *of_rows(function, _triplets, options, seed=470),
        *(
            _case(function, f"short-{p:g}", short, {"p": p, "eps": 0.0, "swap": True, "reduction": "sum"}, -3.0)
            for p in (1.0, 2.0, 3.0)
        ),
        _case(function, "close", parallel, {"reduction": "none"}, np.array([1 / 3, -0.1, 0.7, -1.0])),
        _case(function, "close-3", parallel, {"p": 3.0}, 1 / 7),
    ]


def _pairs(source: Source, rows: int, size: int) -> Arrays:
    """Targets of both signs; cosines around a half, whatever the length."""
    first, second = source.normal(rows, size), source.normal(rows, size)
    return {"input1": first, "input2": 0.75 * first + second, "target": 1 - 2 * (np.arange(rows) % 2)}


def cosine_embedding(function: str) -> list[Case]:
    """Vectors that are parallel, or nearly, or opposite, or orthogonal, or 0; targets that are neither 1 nor −1."""
    unit = np.array([[2.0, -1.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    other = np.array([[1.0, 2.0], [2.0, 4.0], [1.0, 2.0], [-3.0, -4.0], [0.5, 0.25]])
    each, cotangent = np.array([-1, -1, -1, 1, -1]), np.array([1 / 3, -0.1, 1e-6, -1.0, 0.7])
    close = Source(485).normal(4, 6)
    near = close * (1.0 + 2.0**-10 * Source(486).normal(4, 6))
    turned = {"input1": close, "input2": near * np.array([[1.0], [-2.0], [0.5], [-1.0]])}
    short = {"input1": unit, "input2": other}
    return [
        *of_rows(function, _pairs, ({"margin": 0.25}, {"margin": -0.5}, {}), seed=480),
        *in_every_format(
            [
                _case(
                    function,
                    "short",
                    short | {"target": each},
                    {"reduction": "none"},
                    cotangent,
                ),
                _case(function, "near", turned | {"target": np.array([1, 1, -1, -1])}, {"margin": -1.5}, 100.0),
            ]
        ),
        *in_every_format([_case(function, "no-target", short | {"target": np.array([0.5, 1, 0, 2, -1])}, {}, 2.0)]),
    ]
