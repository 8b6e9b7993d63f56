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
        # Every token has a cotangent of its own, also where all of a sequence have one ratio.
        of_sequences = {"ratio": "sequence"} if "log_probs" in inputs and option["aggregation"] == "none" else {}
        found.append(case_of(function, words, inputs, cotangent, **option, **of_sequences))
    return found


def in_formats(function: str, name: str, inputs: Arrays, **parameters: Any) -> list[Case]:
    """A case in each format, which its id ends in."""
    cases = in_every_format([case_of(function, name, inputs, **parameters)])
    first = f"{function}-{name}" if name else function
    return [case._replace(id=f"{first}-{dtype}") for case, dtype in zip(cases, DTYPES, strict=True)]


def aggregation_options(function: str, inputs: Arrays, **parameters: Any) -> list[Case]:
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
    cases += aggregation_options(function, inputs)
    for name, given in (("", inputs), ("kinks", kinks)):
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
            found[f"losses are aggregated by {name}"] = {"aggregation": name}
    if case.parameters.get("aggregation", "").startswith("seq") and case.parameters.get("num_items") is None:
        other = {"all": "non-empty", "non-empty": "all"}[case.parameters.get("sequences", "all")]
        found[f"sequences that are averaged are {other}"] = {"sequences": other}
    return found


def _policy(source: Source, rows: int, tokens: int, step: float = 0.3) -> Arrays:
    """On-policy tokens in the first sequence; advantages of either sign, and of 0."""
    old = -2.0 * np.abs(source.normal(rows, tokens))
    x = old + step * source.normal(rows, tokens)
    x[0, ::2] = old[0, ::2]
    advantages = source.normal(rows, tokens)
    advantages.flat[3::7] = 0.0
    return {
        "log_probs": x,
        "old_log_probs": old,
        "advantages": advantages,
        "mask": lengths_mask(source, rows, tokens),
        "ref_log_probs": x + 0.4 * source.normal(rows, tokens),
        "weights": 0.25 + source.uniform(rows, tokens),
    }


def _only(inputs: Arrays, *names: str) -> Arrays:
    """The log-probabilities, advantages, mask, and what is named."""
    return {name: array for name, array in inputs.items() if name not in ("ref_log_probs", "weights") or name in names}


def _at_the_clip(dtype: Any) -> Arrays:
    """Log-ratios next to both bounds of 0.2, on either side, in a format; advantages of both signs."""
    ends = np.array([-0.22314355131420976, 0.1823215567939546]).astype(dtype)
    steps = [np.nextafter(ends, dtype(-np.inf)), ends, np.nextafter(ends, dtype(np.inf))]
    x = np.concatenate([*steps, *steps]).reshape(2, 6)
    advantages = np.array([[0.75] * 6, [-1.25] * 6]).astype(dtype)
    return {"log_probs": x, "old_log_probs": np.zeros((2, 6), dtype), "advantages": advantages}


def _far(function: str) -> list[Case]:
    """Log-ratios up to where e to them ends: ±80 in float32, ±700 in float64; what is finite stays so."""
    d = np.array([[80.0, -80.0, 60.0, -30.0], [80.0, -80.0, 60.0, -30.0]])
    old = np.where(d > 0, -0.5 - d, -0.5)
    far = {"log_probs": old + d, "old_log_probs": old, "advantages": np.array([1.5, -1.5])}
    wide = far | {"ref_log_probs": (old + d) + np.array([[3.0, -60.0, -90.0, 20.0], [0.25, 40.0, -1.0, 0.0]])}
    farther = {name: array * (1.0 if name == "advantages" else 8.75) for name, array in far.items()}
    return [
        float32(case_of(function, "far", far, 1e-30, aggregation="sum")),
        float32(case_of(function, "far-sapo", far, objective="sapo")),
        float32(case_of(function, "far-cispo", far, objective="cispo", clip_low=None, clip_high=4.0)),
        float32(case_of(function, "far-kl", wide, 1e-20, dual_clip=3.0, kl="k3", kl_coef=0.04)),
        case_of(function, "farther-float64", farther, -0.75, aggregation="sum"),
    ]


def _policy_edges(function: str, inputs: Arrays, source: Source) -> list[Case]:
    """One token, nothing that counts, near-certain tokens, ratios of 1 at both bounds, advantages of sequences."""
    sure = -(2.0 ** -np.array([[20.0, 30.0, 40.0, 26.0], [60.0, 24.0, 22.0, 30.0]]))
    near = {"log_probs": sure, "old_log_probs": 3.0 * sure, "advantages": np.array([[1.0], [-2.0]])}
    near["ref_log_probs"] = 0.5 * sure
    equal = {"log_probs": inputs["old_log_probs"], "old_log_probs": inputs["old_log_probs"]}
    on_policy = equal | {"advantages": source.normal(6), "ref_log_probs": inputs["old_log_probs"]}
    one = {name: array[:1, :1] for name, array in inputs.items() if name != "mask"}
    nothing = _only(inputs) | {"mask": np.zeros((6, 5), bool)}
    named: dict[str, Any] = {"kl": "k3", "kl_coef": 0.25}
    return [
        float32(case_of(function, "one-token", one, -0.75, ratio="sequence", **named)),
        float32(case_of(function, "nothing", nothing, aggregation="seq-mean-token-mean")),
        float32(case_of(function, "near-certain", near, 1e3, **named)),
        float32(case_of(function, "on-policy", on_policy, 1 / 3, clip_low=0.0, **named)),
        float32(case_of(function, "dual-of-1", on_policy, 1 / 7, clip_low=0.0, dual_clip=1.0)),
        float32(case_of(function, "sequences", _only(inputs) | {"advantages": source.normal(6)}, ratio="sequence")),
    ]


def _policy_kinds(function: str, inputs: Arrays) -> list[Case]:
    """Every objective with either ratio and every estimate."""
    found = []
    for k, objective in enumerate(("clip", "cispo", "sapo")):
        for ratio in ("token", "sequence"):
            for j, kl in enumerate(("k1", "k2", "k3")):
                given = {"objective": objective, "ratio": ratio, "kl": kl, "kl_coef": 0.25}
                given |= {"kl_ratio_weighted": True} if (j + k) % 2 else {}
                found.append(float32(case_of(function, f"{objective}-{ratio}-{kl}", inputs, -1.25, **given)))
    return found


def policy_loss(function: str) -> list[Case]:
    """Objectives, ratios, estimates, options and aggregations; ratios at their bounds, far from them, and of 1."""
    source = Source(611)
    inputs = _policy(source, 6, 5)
    poisoned = {name: np.array(array) for name, array in inputs.items()}
    for name in poisoned.keys() - {"mask"}:
        poisoned[name][2, ::2], poisoned[name][2, 1], poisoned[name][1, 2] = np.nan, np.inf, -np.inf
    options = {"objective": "clip", "kl": "k3", "kl_coef": 0.25, "clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.375}
    weighted = {"objective": "cispo", "ratio": "sequence", "kl": "k2", "kl_coef": 0.5, "kl_ratio_weighted": True}
    long = _policy(Source(612), 2, 1025) | {"mask": np.ones((2, 1025), bool)}
    wide = _policy(Source(613), 6, 5, 1.0)
    sapo = {"objective": "sapo", "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 2.0}
    return [
        *(float32(case) for case in aggregations(function, poisoned, source)),
        *_policy_kinds(function, inputs),
        *in_formats(function, "", _only(inputs), grad_output=-1.5),
        *in_formats(function, "options", wide, grad_output=-1.5, **options),
        *in_formats(function, "options-weighted", wide, grad_output=1 / 3, **weighted),
        *in_formats(function, "options-sapo", wide, grad_output=-1.5, **sapo),
        *aggregation_options(function, wide),
        case_of(function, "at-the-clip", _at_the_clip(np.float32), -1.5),
        case_of(function, "at-the-clip-float64", _at_the_clip(np.float64), 1 / 3),
        *_far(function),
        *_policy_edges(function, inputs, source),
        float32(case_of(function, "long", _only(long), 1e3)),
        float32(case_of(function, "long-sequence", _only(long), 1e3, ratio="sequence", clip_low=0.01)),
    ]


_STEPS = {"ordinary": 0.25, "on policy": 0.0, "far": 30.0, "tiny": 0.25, "huge": 0.0}
_SIZES = {"tiny": 2.0**-130, "huge": 1e37}


def draw_policy_loss(draws: Draws, parameters: dict[str, Any]) -> Drawn:
    """Log-probabilities near the old ones, on policy, or far from them; advantages of tokens or of sequences."""
    shape = draws.rows(), draws.classes()
    kinds = [kind for kind in _STEPS if not (draws.limits.exact and kind == "far")]
    kind = draws.one_of(*(kind for kind in kinds if kind not in _SIZES or draws.limits.extreme))
    size, step = _SIZES.get(kind, 1.0), _STEPS[kind]
    old = -np.abs(3.0 * draws.noise(*shape))
    x = draws.cast(size * (old + step * draws.noise(*shape)))
    inputs = {"log_probs": x, "old_log_probs": draws.cast(size * old) if step else x}
    advantages = draws.noise(*shape)[:, :1] if draws.maybe() else draws.noise(*shape)
    advantages = np.where(draws.uniform(*advantages.shape) < 0.2, 0.0, advantages)
    inputs["advantages"] = draws.cast(advantages if advantages.shape == shape else advantages[:, 0])
    mask = mask_drawn(draws, shape)
    if mask is not None:
        if draws.limits.extreme and draws.maybe():
            inputs["log_probs"] = np.where(mask, x, x.dtype.type(draws.one_of(np.nan, np.inf, -np.inf)))
        inputs["mask"] = mask
    parameters = policy_drawn(parameters)
    if "kl" in parameters or draws.maybe():
        near = 0.0 if kind == "huge" else 0.25 * size
        inputs["ref_log_probs"] = draws.cast(x.astype(np.float64) + near * draws.noise(*shape))
    if draws.maybe():
        inputs["weights"] = draws.weights(*shape)
    return Drawn(inputs, parameters, shape)


def policy_drawn(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters that fit each other."""
    if ("kl_coef" in parameters or "kl_ratio_weighted" in parameters) and "kl" not in parameters:
        parameters["kl"] = "k3"
    if parameters.get("objective", "clip") != "clip":
        parameters.pop("dual_clip", None)
    return aggregation_drawn(parameters)


def policy_mistakes(case: Case) -> dict[str, Arrays]:
    """Log-probabilities of others in place of the right ones."""
    inputs, found = case.inputs, {}
    found["the old policy is the policy itself"] = {"old_log_probs": inputs["log_probs"]}
    if "ref_log_probs" in inputs:
        found["the old policy is the reference"] = {"old_log_probs": inputs["ref_log_probs"]}
    return found


def policy_parameters(case: Case) -> dict[str, dict[str, Any]]:
    """Options that others have in place of the right ones."""
    given, found = case.parameters, wrong_aggregations(case)
    low, high = given.get("clip_low", 0.2), given.get("clip_high")
    if low is not None and high not in (None, low):
        found["clip_low and clip_high change places"] = {"clip_low": high, "clip_high": low}
    for kl in ("k1", "k2", "k3"):
        if given.get("kl", kl) != kl:
            found[f"{kl} is taken for {given['kl']}"] = {"kl": kl}
    if given.get("kl_coef"):
        found["the sign of the KL is wrong"] = {"kl_coef": -given["kl_coef"]}
        weighs = not given.get("kl_ratio_weighted", False)
        found[f"the KL is {'' if weighs else 'not '}multiplied by the ratio"] = {"kl_ratio_weighted": weighs}
    other = {"token": "sequence", "sequence": "token"}[given.get("ratio", "token")]
    found[f"the ratio is that of a {other}"] = {"ratio": other}
    if given.get("objective", "clip") in ("clip", "cispo"):
        found["only one side is clipped"] = {"clip_low": 1e9, "clip_high": low if high is None else high}
        found["nothing is clipped"] = {"clip_low": 1e9, "clip_high": 1e9}
    return found
