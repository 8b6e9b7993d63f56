"""Golden cases of losses of corresponding elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Callable


_REDUCTIONS = ("mean", "sum", "none")


class Pieces(NamedTuple):
    """What further cases of a loss are made of."""

    case: Callable[..., Case]
    x: np.ndarray
    t: np.ndarray
    weight: np.ndarray


def elements(
    seed: int,
    *further: Callable[[Pieces], list[Case]],
    first: str = "input",
    probabilities: tuple[str, ...] = (),
    low: float = -4.0,
    signs: bool = False,
) -> Callable[[str], list[Case]]:
    """Cases that every loss of corresponding elements has, and further ones.

    Those arguments hold probabilities; of many elements, the others are in [low, low + 8). With signs, targets are 1
    and −1.
    """

    def build(function: str) -> list[Case]:
        source = Source(seed)
        x = source.uniform(4, 7) if first in probabilities else source.normal(4, 7) * 2.0
        t = source.uniform(4, 7) if "target" in probabilities else source.normal(4, 7) * 2.0
        t = _signs_of(t) if signs else t

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
            kind = np.float64 if dtype == np.float64 else np.float32
            inputs |= {key: value.astype(kind) for key, value in arrays.items()}
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
            *(
                in_format(_long(case, source, shape, first, probabilities, low, signs=signs), name)
                for name, shape in LONG
            ),
        ]

    return build


def _signs_of(values: np.ndarray) -> np.ndarray:
    return np.where(values < 0.0, -1.0, 1.0)


# In which format there are how many: more elements than a block, and than an index of 16 bits tells apart.
LONG: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("float16", (1025,)),
    ("float64", (1025,)),
    ("bfloat16", (4097,)),
    ("float32", (257, 257)),
)


def _long(
    case: Callable[..., Case],
    source: Source,
    shape: tuple[int, ...],
    first: str,
    probabilities: tuple[str, ...],
    low: float,
    *,
    signs: bool,
) -> Case:
    """So many elements, with a gradient of each that a mean does not hide."""
    count = int(np.prod(shape))
    x, t = (
        0.98 - 0.96 * source.uniform(*shape) if name in probabilities else source.uniform(*shape) * 8.0 + low
        for name in (first, "target")
    )
    t = _signs_of(t) if signs else t
    return case(f"elements-{count}", values=x, targets=t, dtype=np.float64, grad_output=-1.5 * count)


def _options(pieces: Pieces, *reductions: str, cotangent: float = -2.5, **given: Any) -> list[Case]:
    """Every option at once in every format, by reduction."""
    x = given.get("values", pieces.x)
    return in_every_format(
        pieces.case(
            f"options-{reduction}",
            dtype=np.float64,
            reduction=reduction,
            grad_output=cotangent * (Source(200).normal(*x.shape) if reduction == "none" else 1.0),
            **given,
        )
        for reduction in reductions
    )


def kinked(pieces: Pieces, *, weighted: bool = True, **parameters: float) -> list[Case]:
    """Distances of 0, of a half, where the pieces of some losses may meet, on both sides of it, and of up to 56."""
    t = np.round(pieces.t * 4.0) / 8.0
    distances = (np.arange(28) - 14).reshape(4, 7) / 8.0 * np.array([[32.0], [1.0], [1.0], [1.0]])
    weight: dict[str, Any] = {"weight": pieces.weight} if weighted else {}
    return _options(pieces, *_REDUCTIONS, values=t + distances, targets=t, **weight, **parameters)


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
        *_options(pieces, *_REDUCTIONS, weight=pieces.weight[0], targets=np.where(pieces.x < 0.5, hard, pieces.t)),
        # No float16 is as large as some of its derivatives, nor as small as others.
        *(in_format(_sure(pieces, _NEXT_TO_SURE), name) for name in DTYPES if name != "float16"),
        in_format(_sure(pieces, (0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0)), "float16"),
    ]


_NEXT_TO_SURE = (0.0, 2.0**-24, 2.0**-12, 1.0 - 2.0**-8, 1.0, 2.0**-90, 0.5)


def _sure(pieces: Pieces, p: tuple[float, ...]) -> Case:
    """Probabilities of 0 and 1, and next to them, of targets that are hit or missed; a derivative may be 1e12."""
    t = np.array([[0.0] * 7, [1.0] * 7, [0.25] * 7])
    cotangent = 2.0**-28 * Source(201).normal(3, 7)
    values = np.broadcast_to(np.array(p), t.shape)
    return pieces.case(
        "options-sure", values=values, targets=t, dtype=np.float64, reduction="none", grad_output=cotangent
    )


def sure_logits(pieces: Pieces) -> list[Case]:
    """Logits far from 0, and weights of elements and of positive targets."""
    hard = np.round(pieces.t)
    return [
        pieces.case("weighted", weight=pieces.weight, grad_output=1.25),
        pieces.case("pos-weight", pos_weight=pieces.weight[0], grad_output=-1.25),
        pieces.case("weighted-pos-weight", weight=pieces.weight[:, :1], pos_weight=pieces.weight[0], grad_output=2.0),
        pieces.case("confident", values=pieces.x * 40.0, targets=hard, grad_output=1e3),
        pieces.case("saturated", values=pieces.x * 500.0, targets=hard, reduction="sum", grad_output=-1.0),
        *_saturated(pieces),
    ]


def saturated_elements() -> tuple[np.ndarray, np.ndarray]:
    """Logits that saturate at either end [7, 7], and targets of which half are on their side."""
    sizes = np.array([18.0, 40.0, 100.0, 18.0, 40.0, 100.0, 2.0])
    signs = np.where((np.arange(7)[:, None] + np.arange(7)) % 2 == 0, 1.0, -1.0)
    x = signs * sizes
    x[3:] *= np.array([0.0625, 0.125, 0.03125, 0.25])[:, None]
    t = (Source(202).uniform(7, 7) < 0.5).astype(np.float64)
    t[[0, 1]] = np.array([[1.0], [0.0]])
    t[5:] = Source(203).uniform(2, 7)
    return x, t


def _saturated(pieces: Pieces) -> list[Case]:
    """Weights along each axis, of as many elements: taken along the other one they are others."""
    x, t = saturated_elements()
    source = Source(204)
    weight, pos_weight = source.uniform(7, 1) * 2.0 + 0.25, source.uniform(7) * 4.0 + 0.25
    return _options(pieces, *_REDUCTIONS, values=x, targets=t, weight=weight, pos_weight=pos_weight)


def log_targets(pieces: Pieces) -> list[Case]:
    """Targets that are logarithms of probabilities."""
    logs = -np.abs(pieces.x)
    return [
        pieces.case("batchmean", reduction="batchmean", grad_output=1.25),
        pieces.case("log-target", targets=logs[::-1], log_target=True, grad_output=-1.25),
        pieces.case("log-target-none", targets=logs[::-1], log_target=True, reduction="none", grad_output=pieces.t),
        pieces.case("close", values=logs, targets=logs + 2.0**-12, log_target=True, reduction="sum", grad_output=3.0),
        *_options(pieces, *_REDUCTIONS, "batchmean", values=logs - 1.0, targets=logs[::-1], log_target=True),
        *_hard_distributions(pieces),
    ]


def _hard_distributions(pieces: Pieces) -> list[Case]:
    """Targets of 0, next to 0, of 1 and beyond, of log-probabilities as far away; one of them is −inf."""
    t = np.array([[0.0, 1.0, 2.0**-100, 0.5, 2.0], [1.0, 0.0, 0.25, 2.0**-14, 0.0], [0.0, 2.0**-20, 1.0, 0.0, 0.75]])
    x = -np.array([[1.0, 0.5, 110.0, 90.0, 0.25], [200.0, 60.0, 2.0, 9.0, 0.0], [40.0, 1.0, 0.0, 130.0, 3.0]])
    cotangent = Source(205).normal(3, 5) * 2.0
    masked = np.where((t == 0.0) & (x == -130.0), -np.inf, x)
    hard = {"values": x, "targets": t, "dtype": np.float64}
    return [
        *in_every_format(
            [
                pieces.case("hard", reduction="none", grad_output=cotangent, **hard),
                pieces.case("hard-batchmean", reduction="batchmean", grad_output=-1.5, **hard),
            ]
        ),
        pieces.case("masked", reduction="none", grad_output=cotangent, values=masked, targets=t),
    ]


def margins(pieces: Pieces) -> list[Case]:
    """Products of an input and a sign at 0, next to it and so far from it that exponentials are lost, or infinite."""
    sizes = np.array([0.0, 2.0**-20, 0.5, 18.0, 45.0, 100.0, 1.0])
    x = sizes * np.array([[1.0], [-1.0], [1.0], [-1.0]])
    t = np.array([[1.0], [1.0], [-1.0], [-1.0]]) * np.array([1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 3.0])
    t[2] = np.array([0.0, 0.5, -3.0, 0.25, -0.5, 2.0, -0.0])
    return [
        pieces.case("confident", values=pieces.x * 40.0, grad_output=1e3),
        pieces.case("saturated", values=pieces.x * 500.0, reduction="sum", grad_output=-1.0),
        pieces.case("saturated-float64", values=pieces.x * 500.0, dtype=np.float64, grad_output=-1.0),
        *_options(pieces, *_REDUCTIONS, values=x, targets=t),
    ]


def hinged(pieces: Pieces, margin: float = 0.75) -> list[Case]:
    """Inputs at the margin, on both sides of it and far from it, of either sign and of targets that are no sign."""
    distances = (np.arange(28) - 14).reshape(4, 7) / 8.0 * np.array([[32.0], [1.0], [1.0], [1.0]])
    t = np.where((np.arange(28).reshape(4, 7) % 3) == 0, 1.0, -1.0)
    t[3] = np.array([0.0, 0.5, 1.0, -1.0, 3.0, -0.5, 2.0])
    return _options(pieces, *_REDUCTIONS, values=margin + distances, targets=t, margin=margin)
