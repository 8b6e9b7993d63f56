"""Cases of losses of a mixture's router: tokens that agree or not, layers that do, and experts that are tied."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.draws import Draws, Tried


def _drawn_rows(draws: Draws, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Logits, and rows that do not count, which may hold what must not leak."""
    logits = draws.logits(*shape)
    if draws.limits.exact:
        return {"router_logits": logits}
    ignored = draws.ignored(shape[:-1])
    if shape[-1] > 1 and draws.maybe():
        logits[..., draws.size(0, shape[-1] - 1)] = -np.inf
    if draws.limits.extreme and draws.maybe():
        logits[ignored] = draws.one_of(np.nan, np.inf, -np.inf)
    return {"router_logits": logits} | ({"mask": ~ignored} if ignored.any() or draws.maybe() else {})


def draw_router_z_loss(draws: Draws) -> Drawn:
    """Rows of which some may not count."""
    rows = (draws.rows(),) if draws.limits.exact else draws.row_shape()
    return Drawn(_drawn_rows(draws, (*rows, draws.classes())), {})


def draw_moe_load_balancing(draws: Draws, parameters: Mapping[str, Tried]) -> Drawn:
    """Tokens of one layer or several; experts as their logits choose them, or others."""
    layers = () if draws.limits.exact or not draws.maybe() else (draws.size(1, 3),)
    shape = (*layers, draws.rows() if not layers else draws.size(0, 4), draws.classes())
    options = draws.parameters(parameters)
    options["top_k"] = min(options.get("top_k", 2), shape[-1])
    inputs = _drawn_rows(draws, shape)
    if not draws.limits.exact and draws.maybe():
        order = np.argsort(draws.uniform(*shape), axis=-1, kind="stable")
        inputs["selected"] = draws.integers(order[..., : options["top_k"]])
    return Drawn(inputs, options)


def _case(function: str, name: str, logits: np.ndarray, top_k: int = 0, **given: Any) -> Case:
    grad_output, dtype = given.pop("grad_output", -1.25), given.pop("dtype", np.float32)
    inputs = {"router_logits": logits.astype(dtype)}
    inputs |= {key: given.pop(key) for key in ("mask", "selected") if key in given}
    parameters = given | ({"top_k": top_k} if top_k else {})
    return Case(f"{function}-{name}", function, inputs, parameters, grad_output)


def _padded(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """With what must not leak in rows that do not count."""
    poisons = np.array([np.nan, np.inf, -np.inf, 1e4])
    held = np.broadcast_to(mask.reshape(-1), logits.shape[:-1])
    return np.where(held[..., None], logits, poisons[np.arange(logits.shape[-1]) % 4])


def moe_load_balancing(function: str) -> list[Case]:
    """Layers with opposite favourites, experts that nobody or everybody chooses, ties, and sure rows."""
    case, source = partial(_case, function), Source(391)
    favourites = np.array([2.0, 1.0, 0.0, 0.0, -1.0, -0.5, -2.0])
    x = source.normal(12, 7) * 1.5 + favourites
    layers = source.normal(3, 12, 7) * 1.5 + np.stack([favourites, -favourites, favourites[::-1] * 0.5])[:, None]
    mask = np.ones((3, 4), bool)
    mask[0, 2:], mask[2, 3:] = False, False
    own = np.stack([mask.reshape(12), ~mask.reshape(12), np.arange(12) != 5])
    options = [
        case("options-masked", _padded(x, mask), 2, mask=mask, dtype=np.float64),
        case("options-layers", layers, 2, dtype=np.float64, pool_layers=False),
        case("options-normalised", layers, 3, mask=mask, dtype=np.float64, normalise_top_k=True),
        case("options-selected", x[:10], 2, selected=_next_to_each_other(10, 7), dtype=np.float64),
    ]
    return [
        *(case(name, x, 2, dtype=dtype) for name, dtype in DTYPES.items()),
        case("masked", _padded(x, mask), 2, mask=mask, grad_output=2.5),
        case("masked-layers", _padded(layers, mask), 2, mask=mask, grad_output=0.7),
        case("own-masks", layers, 2, mask=own, grad_output=-3.0),
        case("own-masks-apart", layers, 2, mask=own, grad_output=-3.0, pool_layers=False),
        case("all-masked", x, 2, mask=np.zeros(12, bool)),
        case("layers-apart", layers, 1, grad_output=1 / 3, pool_layers=False, normalise_top_k=True),
        *_choices(case, source),
        *_edges(case, source),
        *in_every_format(options),
        *(
            in_format(case(f"experts-{experts}", source.normal(rows, experts) * 2.0, k, dtype=np.float64), name)
            for rows, experts, k, name in ((67, 64, 8, "float32"), (131, 16, 4, "bfloat16"), (40, 129, 1, "float64"))
        ),
    ]


def _next_to_each_other(rows: int, experts: int) -> np.ndarray:
    """Two experts for each row."""
    return np.asarray((np.arange(rows)[:, None] + np.arange(2)) % experts)


def _choices(case: Any, source: Source) -> list[Case]:
    """Who is chosen: by ties, by layers that make up for each other, by a caller."""
    tied = np.round(source.normal(10, 6))
    turns = 8.0 * np.eye(6)[np.arange(12) // 2 % 6] + 0.25 * source.normal(12, 6)
    twice = np.stack([np.where(np.arange(6) < 3, 4.0, -4.0), np.where(np.arange(6) < 3, -4.0, 4.0)])
    opposite = twice[:, None] + source.normal(2, 8, 6) * 0.5
    backwards = np.array([[5, 4]] * 9 + [[0, 5]])
    return [
        case("ties", tied, 3, grad_output=2.0),
        case("ties-selected", tied, 2, selected=_next_to_each_other(10, 6), grad_output=2.0),
        case("selected", source.normal(10, 6), 2, selected=backwards, grad_output=2.0),
        case("improbable-selected", source.normal(10, 6) - 90.0 * (np.arange(6) > 3), 2, selected=backwards),
        case("balanced", turns, 1, grad_output=3.0),
        case("nearly-balanced", turns[:11], 1, grad_output=3.0),
        case("opposite-layers", opposite, 3, grad_output=100.0),
        case("opposite-layers-apart", opposite, 3, grad_output=100.0, pool_layers=False),
    ]


def _edges(case: Any, source: Source) -> list[Case]:
    x = source.normal(9, 5) * 2.0
    one = x.copy()
    one[:, 3] += 8.0
    sure = x * np.array([1.0, 20.0, 6.0, 1.0, 45.0, 3.0, 10.0, 1.0, 90.0])[:, None]
    absent = np.where(np.arange(5) < 2, x, -np.inf)
    some = np.where(source.uniform(9, 5) < 0.3, -np.inf, x)
    some[:, 1] = x[:, 1]
    return [
        case("one-takes-all", one, 1, grad_output=1e3),
        case("sure", sure, 2, grad_output=1e3),
        case("sure-float64", sure, 2, grad_output=1e3, dtype=np.float64),
        case("offset", np.round(x * 8.0) / 8.0 + 1024.0, 2, grad_output=-7.0),
        case("absent-experts", absent, 3, grad_output=2.0),
        case("some-experts", some, 1, grad_output=2.0),
        case("every-expert", x, 5, grad_output=2.0),
        case("one-expert", x[:, :1], 1),
        case("one-token", x[:1], 2),
        case("flat", np.repeat(np.array([[0.0], [2.5], [-100.0]]), 5, axis=1), 2, grad_output=1 / 3),
    ]


def router_z_loss(function: str) -> list[Case]:
    """Rows whose lse is large, small or next to 0, rows that do not count, and layers."""
    case, source = partial(_case, function), Source(392)
    x = source.normal(3, 4, 7) * 2.0 + 1.5
    mask = np.ones((3, 4), bool)
    mask[0, 2:], mask[2, 3:] = False, False
    rows = x.reshape(12, 7)
    padded = _padded(rows, mask).reshape(3, 4, 7)
    offsets = np.array([0.0, 40.0, -40.0, 1e4, -1e4, 3e-3])
    sizes = source.normal(6, 7) * np.array([1.0, 30.0, 300.0, 1.0, 1.0, 1e-3])[:, None] + offsets[:, None]
    near = np.round(source.normal(8, 7) * 2.0**10) * 2.0**-10
    near -= np.round(np.array([0.75, 1.5, 2.5, 2.0, 1.75, 2.25, 2.125, 1.875]) * 2.0**4)[:, None] * 2.0**-4
    experts = np.where(source.uniform(8, 7) < 0.4, -np.inf, near)
    experts[:, 2] = near[:, 2]
    options = [
        case("options-masked", padded, mask=mask, dtype=np.float64, grad_output=-0.75),
        case("options-layers", np.stack([rows, 1.0 - rows]), mask=mask, dtype=np.float64, grad_output=1.5),
    ]
    return [
        *(case(name, x, dtype=dtype) for name, dtype in DTYPES.items()),
        case("masked", padded, mask=mask, grad_output=2.5),
        case("all-masked", rows, mask=np.zeros(12, bool)),
        case("sizes", sizes, grad_output=1e-3),
        case("sizes-float64", sizes, grad_output=1e-3, dtype=np.float64),
        case("next-to-0", near, grad_output=7.0),
        case("absent-experts", experts, grad_output=7.0),
        case("flat", np.repeat(np.array([[0.0], [2.5], [-100.0]]), 5, axis=1), grad_output=1 / 3),
        case("one-row", rows[0], grad_output=2.0),
        case("one-expert", rows[:, :1], grad_output=2.0),
        *in_every_format(options),
        *(
            in_format(case(f"experts-{experts}", source.normal(rows, experts) * 2.0, dtype=np.float64), name)
            for rows, experts, name in ((67, 64, "float32"), (35, 256, "bfloat16"), (20, 129, "float64"))
        ),
    ]


def mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """What a kernel takes for the logits or for the mask."""
    given: dict[str, dict[str, np.ndarray]] = {}
    logits, mask = case.inputs["router_logits"], case.inputs.get("mask")
    if mask is not None and mask.ndim == 2 and mask.size > 1 and not _is_poisoned(logits):
        other = np.ascontiguousarray(mask.T).reshape(mask.shape)
        if not np.array_equal(other, mask):
            given["the mask's tokens are in another order"] = {"mask": other}
    return given


def mistaken_parameters(case: Case) -> dict[str, dict[str, Any]]:
    """How else a kernel may divide, or put layers together."""
    given, top_k = case.parameters, case.parameters["top_k"]
    pooled, normalised = given.get("pool_layers", True), given.get("normalise_top_k", False)
    others: dict[str, dict[str, Any]] = {}
    if top_k > 1:
        words = "the counts are not divided by top_k" if normalised else "the counts are divided by top_k"
        others[words] = {"normalise_top_k": not normalised}
    if case.inputs["router_logits"].ndim > 2 and len(case.inputs["router_logits"]) > 1:
        words = "each layer is balanced on its own" if pooled else "the layers are pooled"
        others[words] = {"pool_layers": not pooled}
    if "selected" not in case.inputs and top_k > 1:
        others["an expert fewer is counted for each token"] = {"top_k": top_k - 1}
    return others


def _is_poisoned(logits: np.ndarray) -> bool:
    return not bool(np.isfinite(logits.astype(np.float64)).all())
