"""Cases of losses of preferences: log-probabilities of sequences, and what a reference model says of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from refloss.cases.draws import Drawn
from refloss.cases.elements import LONG
from refloss.cases.formats import in_every_format, in_format
from refloss.cases.source import DTYPES, Case, Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.draws import Draws, Tried

REFERENCES = ("ref_chosen_log_probs", "ref_rejected_log_probs")
NAMES = ("chosen_log_probs", "rejected_log_probs", *REFERENCES)
Kind = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "simpo",
    "orpo",
]
KINDS = get_args(Kind)
# How soon "discopop" turns from one loss into the other, in units of x.
TAU = 0.05
ALONE = ("simpo", "orpo")  # without a reference
SMOOTHED = ("sigmoid", "robust", "exo_pair", "simpo")
# They have the difference of both log-ratios alone.
_OF_DIFFERENCE = ("sigmoid", "robust", "hinge", "ipo", "exo_pair", "discopop")
_LIKE_OTHERS = ("robust", "hinge", "exo_pair", "nca_pair", "sppo_hard", "apo_zero")
# Where a kind needs, or has, more than β.
_OF_KIND: dict[str, dict[str, float]] = {
    "robust": {"label_smoothing": 0.1},
    "exo_pair": {"label_smoothing": 0.1},
    "simpo": {"gamma": 0.5, "beta": 2.0},
}


def _arrays(source: Source, kind: str, *shape: int) -> list[np.ndarray]:
    """Log-probabilities of short sequences, mean ones where a kind takes these, and references next to them."""
    if kind in ALONE:
        return [-0.125 - 2.0 * source.uniform(*shape) for _ in range(2)]
    chosen, rejected = (-6.0 - 8.0 * source.uniform(*shape) for _ in range(2))
    return [chosen, rejected, chosen + 3.0 * source.normal(*shape), rejected + 3.0 * source.normal(*shape)]


def _case(
    function: str, name: str, arrays: Any, *, grad_output: Any = 1.0, dtype: Any = np.float64, **given: Any
) -> Case:
    inputs = {key: np.asarray(array, dtype) for key, array in zip(NAMES, arrays, strict=False)}
    return Case(f"{function}-{name}", function, inputs, given, grad_output)


def pairs(function: str) -> list[Case]:
    """Of preference_loss."""
    source = Source(92)
    plain = _arrays(source, "sigmoid", 4, 7)
    kinds = {kind: _arrays(source, kind, 13) for kind in KINDS}
    each = source.normal(13)
    return [
        *(_case(function, f"{name}-mean", plain, dtype=dtype, grad_output=-0.75) for name, dtype in DTYPES.items()),
        _case(function, "sum", plain, reduction="sum", grad_output=0.3, dtype=np.float32),
        _case(function, "none", plain, reduction="none", grad_output=source.normal(4, 7), dtype=np.float32),
        _case(function, "one-pair", [array[:1, 0] for array in plain], grad_output=2.0, dtype=np.float32),
        _case(function, "no-reference", plain[:2], grad_output=1.5, dtype=np.float32),
        *in_every_format([_case(function, "smoothed", plain, label_smoothing=0.2, grad_output=-1.5)]),
        _case(function, "simpo-smoothed", kinds["simpo"], kind="simpo", label_smoothing=0.2, gamma=0.25,
              grad_output=1.5, dtype=np.float32),
        *(
            case
            for kind, arrays in kinds.items()
            for case in _of_formats(
                kind, _case(function, f"options-{kind}", arrays, kind=kind, grad_output=-2.5, **_OF_KIND.get(kind, {}))
            )
        ),
        *(
            _case(function, f"{kind}-sharp-none", arrays, kind=kind, reduction="none", grad_output=each,
                  **{"beta": 0.5, **_OF_KIND.get(kind, {})})
            for kind, arrays in kinds.items()
        ),
        *_far(function, each),
        *_at_kinks(function, each),
        *_odds(function, each),
        *(in_format(_long(function, source, shape), name) for name, shape in LONG),
    ]  # fmt: skip


def _of_formats(kind: str, case: Case) -> list[Case]:
    """In every format, but where a kind has nothing that another one has not."""
    return [in_format(case, "float32")] if kind in _LIKE_OTHERS else in_every_format([case])


def _long(function: str, source: Source, shape: tuple[int, ...]) -> Case:
    count = math.prod(shape)
    return _case(function, f"elements-{count}", _arrays(source, "sigmoid", *shape), grad_output=-1.5 * count)


def _far(function: str, each: np.ndarray) -> list[Case]:
    """x of 0, next to it, ±700, ±10000, and log-probabilities that are infinite, among ordinary ones."""
    h = np.array([0.0, 2.0**-30, -(2.0**-30), 7e3, -7e3, 1e5, -1e5, 300.0, -300.0, 20.0, -3.0, 1.0, -40.0])
    reference = np.full(13, -100.0)
    far = [reference + h, np.full(13, -100.0), reference, reference]
    halves = [reference + h / 2, reference - h / 2, reference, reference]
    kinds = [kind for kind in KINDS if kind not in ALONE]
    gone = [array.copy() for array in halves]
    gone[0][3] = gone[1][4] = -np.inf
    return [
        *(
            _case(function, f"{kind}-far-{name}", arrays, kind=kind, reduction="none", grad_output=each,
                  **_OF_KIND.get(kind, {}))
            for kind in kinds
            for name, arrays in (("chosen", far), ("both", halves))
            if name == "chosen" or kind not in _OF_DIFFERENCE
        ),
        *(
            _case(function, f"{kind}-infinite", gone, kind=kind, reduction="none", grad_output=each,
                  **_OF_KIND.get(kind, {}))
            for kind in ("sigmoid", "hinge", "apo_down")
        ),
    ]  # fmt: skip


def _at_kinks(function: str, each: np.ndarray) -> list[Case]:
    """The hinge where it is 0 and next to it, and squares at their least; in every format, with β a power of two."""
    steps = np.array([0.0, 0.0, 0.0625, -0.0625, 1.0, -1.0, 4.0, -4.0, 0.5, -0.5, 8.0, -8.0, 0.0])
    base = -4.0 - np.arange(13) % 3
    cases = []
    for kind, optimum in (("hinge", 2.0), ("ipo", 1.0), ("sppo_hard", 1.0)):
        arrays = [base + optimum + steps, base - (optimum if kind == "sppo_hard" else 0.0), base, base]
        cases.append(
            _case(function, f"{kind}-met-none", arrays, kind=kind, beta=0.5, reduction="none", grad_output=each)
        )
    return in_every_format(cases)


def _odds(function: str, each: np.ndarray) -> list[Case]:
    """Mean log-probabilities next to 0 and far below."""
    w = np.array([-1e-9, -1e-9, -700.0, -700.0, -1e-9, -0.5, -1e-3, -40.0, -(2.0**-40), -0.6875, -1e-300, -2.0, -3.0])
    l = np.array([-1e-9, -700.0, -1e-9, -700.0, -0.5, -1e-9, -1e-3, -0.25, -30.0, -0.703125, -1.0, -1e-12, -3.0])  # noqa: E741
    return [
        _case(function, "orpo-odds", [w, l], kind="orpo", reduction="none", grad_output=each),
        _case(function, "orpo-sure", [w[[0, 5, 6, 9, 11]], l[[4, 7, 6, 9, 12]]], kind="orpo", beta=1.0,
              dtype=np.float32, grad_output=-1.5),
    ]  # fmt: skip


def mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """Mistakes of other inputs: a reference is forgotten, or exchanged with another; what is desirable is not."""
    names = [name for name in (*REFERENCES, "ref_log_probs") if name in case.inputs]
    wrong = {"the reference is forgotten": {name: np.zeros_like(case.inputs[name]) for name in names}} if names else {}
    if len(names) == 2:
        first, second = names
        wrong["the references are exchanged"] = {first: case.inputs[second], second: case.inputs[first]}
    if "desirable" in case.inputs:
        wrong["desirable is taken the other way round"] = {"desirable": case.inputs["desirable"] == 0}
    return wrong


def _drawn(draws: Draws, shape: tuple[int, ...], *, mean: bool) -> np.ndarray:
    """Log-probabilities of a sequence, or the mean of its tokens', which is not 0."""
    extreme = draws.limits.extreme and not draws.limits.exact and draws.maybe()
    values = np.abs(draws.logits(*shape, near=not extreme).astype(np.float64))
    least = (1.0 if draws.limits.exact else draws.one_of(0.125, 2.0**-10)) if mean else 0.0
    return draws.cast(-values - least)


def _reference(draws: Draws, values: np.ndarray) -> np.ndarray:
    """Of the same, or next to it, or some apart."""
    if not draws.limits.exact and draws.maybe():
        return draws.near(values)
    return draws.cast(values.astype(np.float64) + draws.logits(*values.shape, near=True).astype(np.float64))


def draw_pairs(draws: Draws, specified: Mapping[str, Tried]) -> Drawn:
    """Of preference_loss: options that go together."""
    shape, parameters = draws.elements(), draws.parameters(specified)
    kind = parameters.get("kind", "sigmoid")
    if kind not in SMOOTHED:
        parameters.pop("label_smoothing", None)
    elif kind == "exo_pair" and not parameters.get("label_smoothing"):
        parameters["label_smoothing"] = 0.1
    if kind != "simpo":
        parameters.pop("gamma", None)
    chosen, rejected = (_drawn(draws, shape, mean=kind in ALONE) for _ in range(2))
    inputs = {"chosen_log_probs": chosen, "rejected_log_probs": rejected}
    if kind not in ALONE and (draws.limits.exact or not draws.one_of(False, False, True)):
        inputs |= dict(zip(REFERENCES, (_reference(draws, chosen), _reference(draws, rejected)), strict=True))
    return Drawn(inputs, parameters, shape)


def sequences(function: str) -> list[Case]:
    """Of kto."""
    source = Source(93)
    names = ("log_probs", "ref_log_probs", "desirable")

    def arrays(*shape: int) -> list[np.ndarray]:
        values = -6.0 - 8.0 * source.uniform(*shape)
        return [values, values + 3.0 * source.normal(*shape), source.uniform(*shape) < 0.5]

    def case(
        name: str, given: list[np.ndarray], *, dtype: Any = np.float64, grad_output: Any = 1.0, **options: Any
    ) -> Case:
        inputs = {
            key: array if array.dtype == bool else array.astype(dtype) for key, array in zip(names, given, strict=True)
        }
        return Case(f"{function}-{name}", function, inputs, {"kl": 0.75} | options, grad_output)

    plain, each = arrays(4, 7), source.normal(4, 7)
    y = np.array([0.0, 2.0**-30, 7e3, -7e3, 1e5, -1e5, 300.0, -300.0, 20.0, -3.0, 1.0, -40.0, -np.inf, 4.0])
    far = [np.stack([y - 100.0, y - 100.0]), np.full((2, 14), -100.0), np.array([[True] * 14, [False] * 14])]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.25}
    return [
        *(case(f"{name}-mean", plain, dtype=dtype, grad_output=-0.75) for name, dtype in DTYPES.items()),
        case("sum", plain, dtype=np.float32, reduction="sum", grad_output=0.3),
        case("none", plain, dtype=np.float32, reduction="none", grad_output=each),
        case("float64-none", plain, reduction="none", grad_output=each),
        case("one-sequence", [array[:1, 0] for array in plain], dtype=np.float32, grad_output=2.0),
        case("negative-kl", plain, kl=-2.0, dtype=np.float32, grad_output=1.5),
        *in_every_format(
            case(f"options-{reduction}", plain, reduction=reduction, beta=0.5, kl=2.5, **weights,
                 grad_output=each if reduction == "none" else -2.5)
            for reduction in ("mean", "none")
        ),
        case("far-none", far, reduction="none", kl=0.0, grad_output=source.normal(2, 14), **weights),
        *(
            in_format(case(f"elements-{math.prod(size)}", arrays(*size), grad_output=-1.5 * math.prod(size)), name)
            for name, size in LONG
        ),
    ]  # fmt: skip


def draw_sequences(draws: Draws, specified: Mapping[str, Tried]) -> Drawn:
    """Of kto, whose KL has no default."""
    shape, parameters = draws.elements(), draws.parameters(specified)
    parameters["kl"] = draws.one_of(0.5, 2.25, -1.0, 0.0)
    values = _drawn(draws, shape, mean=False)
    inputs = {"log_probs": values, "ref_log_probs": _reference(draws, values), "desirable": draws.uniform(*shape) < 0.5}
    return Drawn(inputs, parameters, shape)
