"""Golden cases of losses of corresponding elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable


class Pieces(NamedTuple):
    """What further cases of a loss are made of."""

    case: Callable[..., Case]
    x: np.ndarray
    t: np.ndarray
    weight: np.ndarray


def elements(
    seed: int, *further: Callable[[Pieces], list[Case]], first: str = "input", probabilities: tuple[str, ...] = ()
) -> Callable[[str], list[Case]]:
    """Cases that every loss of corresponding elements has, and further ones; those arguments hold probabilities."""

    def build(function: str) -> list[Case]:
        source = Source(seed)
        x = source.uniform(4, 7) if first in probabilities else source.normal(4, 7) * 2.0
        t = source.uniform(4, 7) if "target" in probabilities else source.normal(4, 7) * 2.0

        def case(
            name: str,
            *,
            values: np.ndarray = x,
            targets: np.ndarray = t,
            grad_output: Any = 1.0,
            dtype: Any = np.float32,
            **given: Any,
        ) -> Case:
            arrays = {key: value for key, value in given.items() if isinstance(value, np.ndarray)}
            parameters = {key: value for key, value in given.items() if not isinstance(value, np.ndarray)}
            inputs = {first: values.astype(dtype), "target": targets.astype(dtype)}
            inputs |= {key: value.astype(np.float32) for key, value in arrays.items()}
            return Case(f"{function}-{name}", function, inputs, parameters, grad_output)

        pieces = Pieces(case, x, t, source.uniform(4, 7) * 2.0 + 0.25)
        return [
            *(case(f"{name}-mean", dtype=dtype, grad_output=-0.75) for name, dtype in DTYPES.items()),
            case("sum", reduction="sum", grad_output=0.3),
            case("none", reduction="none", grad_output=source.normal(4, 7)),
            case("float64-none", dtype=np.float64, reduction="none", grad_output=source.normal(4, 7)),
            case("sum-large-cotangent", reduction="sum", grad_output=-1e6),
            case("one-element", values=x[:1, 0], targets=t[:1, 0], grad_output=2.0),
            case("hit", values=t, grad_output=-1.5),
            *(extra for add in further for extra in add(pieces)),
        ]

    return build


def weighted(pieces: Pieces) -> list[Case]:
    """A weight for each element."""
    weight = pieces.weight
    return [
        pieces.case("weighted", weight=weight, grad_output=1.25),
        pieces.case("weighted-sum", weight=weight, reduction="sum", grad_output=-1.25),
    ]


def one_each(name: str, *values: float, grad_output: float) -> Callable[[Pieces], list[Case]]:
    """A case for each of several values of a parameter."""
    return lambda pieces: [
        pieces.case(f"{name}-{value:g}", **{name: value}, grad_output=grad_output) for value in values
    ]


def hard_targets(pieces: Pieces) -> list[Case]:
    """Targets of 0 and 1 for probabilities, which may be as sure, and wrong."""
    hard = np.round(pieces.t)
    return [
        pieces.case("weighted", weight=pieces.weight[0], grad_output=1.25),
        pieces.case("hard", targets=hard, grad_output=-2.0),
        pieces.case("sure", values=hard, targets=hard[::-1], reduction="none", grad_output=0.5),
    ]


def sure_logits(pieces: Pieces) -> list[Case]:
    """Logits far from 0, and weights of elements and of positive targets."""
    hard = np.round(pieces.t)
    return [
        pieces.case("weighted", weight=pieces.weight, grad_output=1.25),
        pieces.case("pos-weight", pos_weight=pieces.weight[0], grad_output=-1.25),
        pieces.case("weighted-pos-weight", weight=pieces.weight[:, :1], pos_weight=pieces.weight[0], grad_output=2.0),
        pieces.case("confident", values=pieces.x * 40.0, targets=hard, grad_output=1e3),
        pieces.case("saturated", values=pieces.x * 500.0, targets=hard, reduction="sum", grad_output=-1.0),
    ]


def log_targets(pieces: Pieces) -> list[Case]:
    """Targets that are logarithms of probabilities."""
    logs = -np.abs(pieces.x)
    return [
        pieces.case("batchmean", reduction="batchmean", grad_output=1.25),
        pieces.case("log-target", targets=logs[::-1], log_target=True, grad_output=-1.25),
        pieces.case("log-target-none", targets=logs[::-1], log_target=True, reduction="none", grad_output=pieces.t),
        pieces.case("close", values=logs, targets=logs + 2.0**-12, log_target=True, reduction="sum", grad_output=3.0),
    ]
