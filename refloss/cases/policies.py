"""Cases of losses of tokens: sequences of unequal lengths, of which some are empty, with every aggregation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from refloss.cases.draws import Draws

_AGGREGATIONS: tuple[dict[str, Any], ...] = (
    {"aggregation": "token-mean"},
    {"aggregation": "seq-mean-token-mean"},
    {"aggregation": "seq-mean-token-sum"},
    {"aggregation": "sum"},
    {"aggregation": "none"},
    {"aggregation": "token-mean", "num_items": 23.0},
    {"aggregation": "seq-mean-token-mean", "sequences": "non-empty"},
    {"aggregation": "seq-mean-token-sum", "sequences": "non-empty"},
    {"aggregation": "seq-mean-token-mean", "num_items": 7.0},
)
Arrays = dict[str, np.ndarray]


def case_of(function: str, name: str, inputs: Arrays, grad_output: Any = -1.25, **parameters: Any) -> Case:
    """A case of float64 arrays."""
    return Case(f"{function}-{name}", function, inputs, parameters, grad_output)


def lengths_mask(source: Source, rows: int, tokens: int) -> np.ndarray:
    """Which tokens count: sequences of other lengths, one of them whole, one of one token, one empty, one with gaps."""
    mask: np.ndarray = np.arange(tokens) < source.integers(tokens + 1, rows)[:, None]
    mask[0], mask[1 % rows] = True, np.arange(tokens) == 0
    if rows > 3:
        mask[2], mask[3] = False, source.uniform(tokens) < 0.6
        mask[3, 0] = True
    return mask


def aggregations(function: str, inputs: Arrays, source: Source) -> list[Case]:
    """Every aggregation of the same tokens."""
    shape, found = next(iter(inputs.values())).shape, []
    for option in _AGGREGATIONS:
        words = "-".join(str(value) for value in option.values())
        cotangent = source.normal(*shape) if option["aggregation"] == "none" else -1.25
        found.append(case_of(function, words, inputs, cotangent, **option))
    return found


def in_formats(function: str, name: str, inputs: Arrays, **parameters: Any) -> list[Case]:
    """A case in each format, which its id ends in."""
    cases = in_every_format([case_of(function, name, inputs, **parameters)])
    return [case._replace(id=f"{function}-{name}-{dtype}") for case, dtype in zip(cases, DTYPES, strict=True)]


def options(function: str, inputs: Arrays, **parameters: Any) -> list[Case]:
    """What an aggregation may be given, in each format."""
    by_length = {"aggregation": "seq-mean-token-mean", "sequences": "non-empty"}
    return [
        *in_formats(function, "options-length", inputs, grad_output=-1.5, **parameters, **by_length),
        *in_formats(function, "options-items", inputs, grad_output=-1.5, **parameters, num_items=7.0),
    ]


def float32(case: Case) -> Case:
    """A case of float64 arrays in float32."""
    return in_every_format([case])[0]


def _values(source: Source, rows: int, tokens: int) -> Arrays:
    returns, values = 2.0 * source.normal(rows, tokens), 2.0 * source.normal(rows, tokens)
    return {
        "values": values,
        "returns": returns,
        "old_values": values + 0.4 * source.normal(rows, tokens),
        "mask": lengths_mask(source, rows, tokens),
    }


def value_loss(function: str) -> list[Case]:
    """Values at their clips and beyond, squares that are equal, tokens that do not count, of every aggregation."""
    source = Source(601)
    inputs = _values(source, 6, 5)
    poisoned = {name: np.array(array) for name, array in inputs.items()}
    for array in (poisoned["values"], poisoned["returns"], poisoned["old_values"]):
        array[2, ::2], array[2, 1], array[1, 2] = np.nan, np.inf, -np.inf
    # At the clip on both sides, beyond it with equal squares (half the slope), and at the return.
    kinks = {
        "values": np.array([[0.25, -0.25, 1.0, 1.0, 3.0, 0.5]]),
        "returns": np.array([[1.0, 1.0, 0.625, 0.5, 3.0, -1.0]]),
        "old_values": np.array([[0.0, 0.0, 0.0, 0.0, 3.0, -2.0]]),
    }
    close = 1.0 + 2.0**-12 * source.normal(4, 3)
    near = {"values": close, "returns": close * (1.0 + 2.0**-7 * source.normal(4, 3)), "old_values": close + 0.2}
    nothing = inputs | {"mask": np.zeros((6, 5), bool)}
    long = _values(Source(602), 2, 1025) | {"mask": np.ones((2, 1025), bool)}
    cases = [
        *(float32(case) for case in aggregations(function, poisoned, source)),
        float32(case_of(function, "clip-aggregated", poisoned, 1 / 3, clip=0.25, aggregation="seq-mean-token-mean")),
        float32(case_of(function, "nothing", nothing, aggregation="seq-mean-token-mean")),
        float32(case_of(function, "one-token", {name: array[:1, :1] for name, array in inputs.items()}, clip=0.25)),
        float32(case_of(function, "long", long, 1e3, clip=0.25)),
        float32(case_of(function, "near", near, 1 / 7, clip=0.25)),
    ]
    cases += options(function, inputs)
    for name, given in (("plain", inputs), ("kinks", kinks)):
        cases += in_formats(function, name, given, clip=0.25, grad_output=-1.5)
    return [*cases, *in_formats(function, "unclipped", {n: inputs[n] for n in ("values", "returns")})]


def mask_drawn(draws: Draws, shape: tuple[int, ...]) -> np.ndarray | None:
    """Which tokens count; none where all do."""
    ignored = draws.ignored(shape)
    return ~ignored if ignored.any() or draws.maybe() else None


def aggregation_drawn(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters that fit each other: losses that are not aggregated are divided by nothing."""
    if parameters.get("aggregation") == "none":
        parameters.pop("num_items", None)
    return parameters


def draw_value_loss(draws: Draws, parameters: dict[str, Any]) -> Drawn:
    """Values anywhere, at their returns, and at what they are clipped around."""
    shape = draws.rows(), draws.classes()
    values, returns, old = draws.logits(*shape), draws.logits(*shape), draws.logits(*shape)
    hit = draws.uniform(*shape) < draws.one_of(0.0, 0.5)
    inputs = {"values": np.where(hit, returns, values), "returns": returns}
    if "clip" in parameters or draws.maybe():
        inputs["old_values"] = draws.near(values) if not draws.limits.exact and draws.maybe() else old
    mask = mask_drawn(draws, shape)
    if mask is not None:
        if draws.limits.extreme and draws.maybe():
            inputs["values"][~mask] = draws.one_of(np.nan, np.inf, -np.inf)
        inputs["mask"] = mask
    return Drawn(inputs, aggregation_drawn(parameters), shape)


def wrong_aggregations(case: Case) -> dict[str, dict[str, Any]]:
    """A case with the normalisers that others have."""
    found = {}
    for name in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "sum"):
        given = case.parameters.get("aggregation", "token-mean")
        if given not in (name, "none"):
            found[f"{given} is taken for {name}"] = {"aggregation": name}
    if case.parameters.get("aggregation", "").startswith("seq") and case.parameters.get("num_items") is None:
        other = {"all": "non-empty", "non-empty": "all"}[case.parameters.get("sequences", "all")]
        found[f"sequences are {other}"] = {"sequences": other}
    return found
