"""Cases of losses of similarities, of which those of pairs are on the diagonal."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.draws import Draws


def draw_pairs(draws: Draws, name: str) -> Drawn:
    """As many of one kind as of the other."""
    count = draws.pairs()
    parameters = draws.options(reduction=("mean", "sum", "none"))
    return Drawn({name: draws.logits(count, count)}, parameters, (count,))


def draw_info_nce(draws: Draws) -> Drawn:
    """As many of one kind as of the other, or more; pairs that are far from all others, classes of −inf."""
    count = draws.pairs()
    parameters = draws.options(
        symmetric=(True, False), label_smoothing=(0.0, 0.1, 1.0), reduction=("mean", "sum", "none")
    )
    wide = parameters.get("symmetric") is False and count > 0 and draws.maybe()
    columns = max(count, draws.classes()) if wide else count
    values = draws.logits(count, columns)
    if not draws.limits.exact and count and draws.maybe():
        values[np.arange(count), np.arange(count)] = 40.0
    if count > 1 and not parameters.get("label_smoothing") and draws.maybe():
        values[0, 1] = -np.inf
    return Drawn({"similarity": values}, parameters, (count,))


def _case(function: str, argument: str, name: str, values: np.ndarray, **given: Any) -> Case:
    grad_output, dtype = given.pop("grad_output", 1.0), given.pop("dtype", np.float32)
    return Case(f"{function}-{name}", function, {argument: values.astype(dtype)}, given, grad_output)


def _of_formats(case: Callable[..., Case], values: np.ndarray, source: Source) -> list[Case]:
    """What every such loss has."""
    cotangent = source.normal(len(values))
    return [
        *(case(f"{name}-mean", values, dtype=dtype, grad_output=-0.75) for name, dtype in DTYPES.items()),
        case("sum", values, reduction="sum", grad_output=0.3),
        case("none", values, reduction="none", grad_output=cotangent),
        case("float64-none", values, dtype=np.float64, reduction="none", grad_output=cotangent),
        case("one-pair", values[:1, :1], grad_output=2.0),
    ]


def sigmoid_contrastive(function: str) -> list[Case]:
    """Logits as a model begins and ends training: around −10, and sure on either side."""
    case, source = partial(_case, function, "logits"), Source(301)
    x = source.normal(7, 7) * 2.0
    eye = np.eye(7)
    sure = (40.0 * eye - 20.0) * (0.5 + source.uniform(7, 7))
    wrong = np.where(source.uniform(7, 7) < 0.3, -sure, sure)
    far = wrong * np.array([1.0, 4.0, 30.0, 0.25, 1.0, 0.125, 2.0])[:, None]
    cotangent = source.normal(7) * np.array([2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 2.0])
    options = [
        case(f"options-{reduction}", far, dtype=np.float64, reduction=reduction, grad_output=grad_output)
        for reduction, grad_output in (("mean", -2.5), ("sum", 1.75), ("none", cotangent))
    ]
    return [
        *_of_formats(case, x, source),
        case("begun", x - 10.0, grad_output=7.0),
        case("sure", sure, grad_output=1e3),
        case("saturated", wrong * 50.0, reduction="sum", grad_output=-1.0),
        *in_every_format(options),
        *(
            in_format(case(f"pairs-{size}", source.normal(size, size) * 3.0, grad_output=-float(size)), name)
            for name, size in (("float32", 131), ("bfloat16", 67))
        ),
    ]


def info_nce(function: str) -> list[Case]:
    """Similarities as a model begins and ends training, and those whose rows and columns pull apart."""
    case, source = partial(_case, function, "similarity"), Source(302)
    x, eye = source.normal(7, 7) * 2.0, np.eye(7)
    sure = x + eye * np.array([5.0, 12.0, 20.0, 30.0, 45.0, 80.0, 0.0])
    masked = np.where(source.uniform(7, 7) < 0.3, -np.inf, x)
    masked[eye > 0] = x[eye > 0]
    opposed = source.normal(7) * 2.0
    apart = np.where(source.uniform(7, 7) < 0.4, x - 120.0, x) + 100.0 * (np.arange(7) % 2)[:, None]
    options = [
        case(
            f"options-{name}-{reduction}", apart, dtype=np.float64, reduction=reduction, grad_output=grad_output, **more
        )
        for name, more in (("smoothed", {"label_smoothing": 0.3}), ("rows", {"symmetric": False}))
        for reduction, grad_output in (("mean", -2.5), ("sum", 1.75), ("none", opposed))
    ]
    return [
        *_of_formats(case, x, source),
        case("begun", x * 0.0625, grad_output=7.0),
        case("confident", sure, reduction="sum", grad_output=1e3),
        case("masked", masked, grad_output=-3.0),
        case("smoothed", x, label_smoothing=0.1, grad_output=-1.25),
        case("uniform", 5.0 * np.diag([0.0, 0.0, 0.0, 1.0]), label_smoothing=0.1, grad_output=1 / 3),
        case("all-smoothed", x, label_smoothing=0.75, grad_output=2.0),
        case("opposed", x + x.T, reduction="none", grad_output=opposed * (-1.0) ** np.arange(7)),
        case("rows", x, symmetric=False, label_smoothing=0.2, grad_output=0.7),
        case("more-negatives", source.normal(5, 11) * 3.0, symmetric=False, reduction="none", grad_output=opposed[:5]),
        *in_every_format([*options, case("apart", apart, dtype=np.float64, reduction="none", grad_output=opposed)]),
        *(
            in_format(case(f"pairs-{size}", source.normal(size, size) * 3.0, grad_output=-float(size)), name)
            for name, size in (("float32", 131), ("bfloat16", 67))
        ),
    ]
