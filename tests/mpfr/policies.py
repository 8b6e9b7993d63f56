"""Losses of tokens from their definitions, and the tokens on which they, or their gradients, are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO
from tests.mpfr.elements import COTANGENTS, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real

ROWS, TOKENS = 6, 9
# Of r·(1 − e^q) + r·(e^q − q − 1) nothing but −r·q is left, which e^q may be 400 bits above.
_BITS = PRECISION + 800


class Tokens(NamedTuple):
    """A call: arrays by name, options, and the cotangent."""

    inputs: dict[str, np.ndarray]
    options: dict[str, Any]
    cotangent: Any = 1.0


class Truth(NamedTuple):
    """Of a call: losses of its tokens and gradients of their sum, row by row, those that do not count among them."""

    losses: list[list[Real]]
    slopes: list[list[Real]]


def counts_of(given: Tokens) -> np.ndarray:
    """Which tokens count."""
    first = next(iter(given.inputs.values()))
    return np.asarray(given.inputs.get("mask", np.ones(first.shape)), bool)


def cotangents_of(given: Tokens) -> np.ndarray:
    """Of each token."""
    return np.broadcast_to(np.asarray(given.cotangent, np.float64), counts_of(given).shape)


def weights_of(given: Tokens) -> list[Real]:
    """What tokens of each sequence are weighed with."""
    counts, options = counts_of(given), given.options
    name, lengths = options.get("aggregation", "token-mean"), counts.sum(axis=1)
    rows = len(counts) if options.get("sequences", "all") == "all" else int((lengths > 0).sum())
    count = {"token-mean": int(lengths.sum()), "sum": 1, "none": 1}.get(name, rows)
    denominator = real(options["num_items"] if options.get("num_items") is not None else count)
    by_length = name == "seq-mean-token-mean"
    return [ONE / (denominator * (max(int(length), 1) if by_length else 1)) for length in lengths]


def _number(given: Tokens, name: str, row: int, token: int) -> Real:
    values = given.inputs[name]
    return real(values[row] if values.ndim == 1 else values[row, token])


def value_truth(given: Tokens) -> Truth:
    """½·max((v − R)², (v_c − R)²)."""
    counts, clip = counts_of(given), given.options.get("clip")
    losses = [[ZERO] * counts.shape[1] for _ in counts]
    slopes = [[ZERO] * counts.shape[1] for _ in counts]
    for row, token in np.argwhere(counts).tolist():
        v, target = (_number(given, name, row, token) for name in ("values", "returns"))
        error = v - target
        loss, slope = error**2 / 2, error
        if clip is not None:
            old = _number(given, "old_values", row, token)
            held = old + max(min(v - old, real(clip)), -real(clip))
            other = (held - target) ** 2 / 2
            share = ONE if loss > other or held == v else ZERO if loss < other else ONE / 2
            loss, slope = max(loss, other), share * error
        losses[row][token], slopes[row][token] = loss, real(cotangents_of(given)[row, token]) * slope
    return Truth(losses, slopes)


class Terms(NamedTuple):
    """Of a token: its loss, its slope in log π, and that in the logarithm of its ratio."""

    loss: Real
    direct: Real
    of_ratio: Real


def _objective(r: Real, x: Real, advantage: Real, options: dict[str, Any]) -> Terms:
    low, high = options.get("clip_low", 0.2), options.get("clip_high")
    upper = ONE + real(low if high is None else high)
    lower = -gmpy2.inf() if low is None else ONE - real(low)
    held = min(max(r, lower), upper)
    objective = options.get("objective", "clip")
    if objective == "cispo":
        return Terms(-held * advantage * x, -held * advantage, ZERO)
    if objective == "sapo":
        names = ("sapo_temperature_pos", 1.0) if advantage > 0 else ("sapo_temperature_neg", 1.05)
        t = real(options.get(*names))
        term = gmpy2.exp(-t * (r - 1))
        own = ONE / (ONE + term)
        return Terms(-4 / t * own * advantage, ZERO, -4 * own**2 * term * r * advantage)
    first, second = -r * advantage, -held * advantage
    share = ONE if held == r or first > second else ZERO if first < second else ONE / 2
    loss = max(first, second)
    dual = options.get("dual_clip")
    if dual is not None and advantage < 0:
        third = -real(dual) * advantage
        share *= ONE if loss < third else ZERO if loss > third else ONE / 2
        loss = min(loss, third)
    return Terms(loss, ZERO, share * first)


def _estimate(q: Real, kl: str) -> tuple[Real, Real]:
    """An estimate of KL and its slope."""
    if kl == "k1":
        return -q, ONE
    if kl == "k2":
        return q**2 / 2, -q
    return gmpy2.expm1(q) - q, -gmpy2.expm1(q)


def _policy_terms(given: Tokens, row: int, token: int, d: Real) -> Terms:
    x, advantage = (_number(given, name, row, token) for name in ("log_probs", "advantages"))
    weight = _number(given, "weights", row, token) if "weights" in given.inputs else ONE
    r = gmpy2.exp(d)
    of = Terms(*(weight * part for part in _objective(r, x, advantage, given.options)))
    coefficient = real(given.options.get("kl_coef", 0.0))
    if not coefficient:
        return of
    kl, slope = _estimate(_number(given, "ref_log_probs", row, token) - x, given.options["kl"])
    extra = Terms(kl * r, slope * r, kl * r) if given.options.get("kl_ratio_weighted") else Terms(kl, slope, ZERO)
    return Terms(*(own + coefficient * part for own, part in zip(of, extra, strict=True)))


def policy_truth(given: Tokens) -> Truth:
    """The objective and KL of each token, and slopes of log π through its own ratio or that of its sequence."""
    counts = counts_of(given)
    losses = [[ZERO] * counts.shape[1] for _ in counts]
    slopes = [[ZERO] * counts.shape[1] for _ in counts]
    for row, counted in enumerate(counts):
        places = np.flatnonzero(counted).tolist()
        names = ("log_probs", "old_log_probs")
        ds = {t: _number(given, names[0], row, t) - _number(given, names[1], row, t) for t in places}
        of_sequence = given.options.get("ratio") == "sequence"
        if of_sequence and places:
            ds = dict.fromkeys(places, gmpy2.fsum(list(ds.values())) / len(places))
        terms = {t: _policy_terms(given, row, t, ds[t]) for t in places}
        upstream = {t: real(cotangents_of(given)[row, t]) for t in places}
        shared = gmpy2.fsum([upstream[t] * each.of_ratio for t, each in terms.items()]) / max(len(places), 1)
        for t, each in terms.items():
            losses[row][t] = each.loss
            slopes[row][t] = upstream[t] * each.direct + (shared if of_sequence else upstream[t] * each.of_ratio)
    return Truth(losses, slopes)


FUNCTIONS: dict[str, tuple[str, Callable[[Tokens], Truth]]] = {
    "value_loss": ("values", value_truth),
    "policy_loss": ("log_probs", policy_truth),
}


def compare(function: str, given: Tokens) -> Iterator[Comparison]:
    """refloss's gradient in every format, and its loss."""
    name, of = FUNCTIONS[function]
    call = getattr(refloss, function)
    with gmpy2.context(precision=_BITS):
        truth, weights = of(given), weights_of(given)
        shape = given.inputs[name].shape
        gradient = [weights[row] * slope for row, line in enumerate(truth.slopes) for slope in line]

        def describe(index: int) -> str:
            row, t = divmod(index, shape[1])
            numbers = {key: float(_number(given, key, row, t)) for key in given.inputs}
            upstream = float(cotangents_of(given)[row, t])
            return f"{given.inputs[name].dtype} [{row}, {t}] {numbers}, {given.options}, {upstream!r}"

        for format_name, dtype in DTYPES.items():
            result = call(**given.inputs, **given.options, grad_output=given.cotangent, grad_dtype=dtype)
            yield Comparison(name, format_name, result.grads[name], exact(gradient, shape), describe)
        if given.options.get("aggregation") == "none":
            flat = [loss for line in truth.losses for loss in line]
            yield Comparison("loss", "float64", result.loss, exact(flat, shape), describe)
            return
        total = gmpy2.fsum([weights[row] * gmpy2.fsum(line) for row, line in enumerate(truth.losses)])
        loss = np.asarray(result.loss)
        yield Comparison("loss", "float64", loss, exact([total], ()), lambda _: f"{given.options}")


Draw = Callable[[np.random.Generator, int], Iterator[Tokens]]
_AGGREGATED: tuple[dict[str, Any], ...] = (
    {"aggregation": "token-mean"},
    {"aggregation": "seq-mean-token-mean"},
    {"aggregation": "seq-mean-token-sum", "sequences": "non-empty"},
    {"aggregation": "sum"},
    {"aggregation": "token-mean", "num_items": 3.7},
    {"aggregation": "seq-mean-token-mean", "sequences": "non-empty"},
    {"aggregation": "none"},
)


def _calls(generator: np.random.Generator, size: int) -> Iterator[tuple[int, np.ndarray, dict[str, Any], Any]]:
    """So many tokens in all: a number, a mask, an aggregation and cotangents."""
    for k in range(max(1, size // (ROWS * TOKENS))):
        mask = np.arange(TOKENS) < generator.integers(0, TOKENS + 1, ROWS)[:, None]
        mask[0] = True
        options = _AGGREGATED[k % len(_AGGREGATED)]
        cotangent: Any = (*COTANGENTS, 1.0)[k % 6]
        if options["aggregation"] == "none":
            cotangent = generator.choice(np.array([*COTANGENTS, 1.0, -2.0]), mask.shape)
        yield k, mask, dict(options), cotangent


def _values(generator: np.random.Generator, size: int, step: float) -> Iterator[Tokens]:
    for k, mask, options, cotangent in _calls(generator, size):
        dtype = INPUT_DTYPES[k % 4]
        old, target = generator.standard_normal((2, ROWS, TOKENS)) * 3
        v = old + generator.choice(np.array([0.1, 0.25, -0.25, 1.0, 1e-3]), old.shape) * step
        if k % 3 == 0:
            v, target, old = (np.round(4 * each) / 4 for each in (v, target, old))
        if k % 3 == 1:
            target = v * (1 + 2.0**-20 * generator.standard_normal(v.shape))
        inputs = {"values": v.astype(dtype), "returns": target.astype(dtype), "old_values": old.astype(dtype)}
        yield Tokens(inputs | {"mask": mask}, options | ({"clip": (0.25, 0.2, 0.1)[k % 3]} if k % 4 else {}), cotangent)


def clipped_values(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Values at their clips and their returns, also with equal squares."""
    yield from _values(generator, size, 1.0)


def far_values(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Values far beyond their clips."""
    yield from _values(generator, size, 40.0)


def _policies(
    generator: np.random.Generator, size: int, old: float, step: float, of_ref: float, **more: Any
) -> Iterator[Tokens]:
    for k, mask, aggregated, cotangent in _calls(generator, size):
        dtype, options = INPUT_DTYPES[k % 4], dict(aggregated)
        sampled = (-np.abs(generator.standard_normal(mask.shape)) * old).astype(dtype)
        x = (sampled + step * generator.standard_normal(mask.shape)).astype(dtype)
        x = np.where(generator.random(mask.shape) < 0.1, sampled, x)
        ref = (x + of_ref * generator.standard_normal(mask.shape)).astype(dtype)
        advantages = generator.standard_normal(mask.shape)
        advantages[generator.random(mask.shape) < 0.1] = 0.0
        given = {"log_probs": x, "old_log_probs": sampled, "advantages": advantages.astype(dtype), "mask": mask}
        if k % 3 == 0:
            given["weights"] = (0.5 + generator.random(mask.shape)).astype(dtype)
        if k % 2:
            given["ref_log_probs"] = ref
            options |= {"kl": ("k1", "k2", "k3")[k // 2 % 3], "kl_coef": (0.04, 0.5, 1.0)[k // 2 % 3]}
            options |= {"kl_ratio_weighted": True} if k // 6 % 2 else {}
        yield Tokens(given, options | {key: value[k // 2 % len(value)] for key, value in more.items()}, cotangent)


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """As one would test it."""
    yield from _policies(generator, size, 3.0, 0.2, 0.3)


def dual(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Bounds of their own on either side, and beyond."""
    yield from _policies(
        generator, size, 3.0, 0.6, 0.3, clip_low=(0.1, 0.3), clip_high=(0.28, 0.0), dual_clip=(1.5, 3.0)
    )


def at_the_clip(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Ratios at both bounds, to the last bit, of every format."""
    ends = np.log(np.array([0.8, 1.2, 1.0]))
    for given in _policies(generator, size, 3.0, 0.2, 0.3):
        old = given.inputs["old_log_probs"]
        if generator.random() < 0.5:
            old = np.zeros_like(old)
        end = generator.choice(ends, old.shape) + generator.integers(-1, 2, old.shape) * 2.0**-52
        inputs = given.inputs | {"old_log_probs": old, "log_probs": (old + end).astype(old.dtype)}
        yield given._replace(inputs=inputs)


def sequences(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Ratios of sequences, of every objective."""
    yield from _policies(
        generator, size, 3.0, 0.3, 0.3, ratio=("sequence",), objective=("clip", "cispo", "sapo"), clip_low=(0.2, 0.02)
    )


def objectives(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """CISPO and SAPO."""
    yield from _policies(generator, size, 3.0, 0.4, 0.3, objective=("cispo", "sapo"), clip_low=(0.2, 0.2, 0.1))


def far(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Log-ratios to ±100 and beyond, and reference log-ratios as large."""
    for k, given in enumerate(_policies(generator, size, 300.0, 60.0, 60.0, objective=("clip", "cispo", "sapo"))):
        yield given._replace(cotangent=np.multiply(given.cotangent, (1.0, 1e-25, 1e-38)[k % 3]).tolist())


def near(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Near-certain tokens: log-ratios and reference log-ratios of next to nothing."""
    for step in (2.0**-20, 2.0**-40, 2.0**-70):
        yield from _policies(generator, size // 3, 3.0 * step, step, step)


def cancelling(generator: np.random.Generator, size: int) -> Iterator[Tokens]:
    """Advantages at which the policy's slope and KL's leave little of each other."""
    for k, given in enumerate(_policies(generator, size, 3.0, 0.1, 0.3)):
        x, old = (given.inputs[name].astype(np.float64) for name in ("log_probs", "old_log_probs"))
        q = generator.standard_normal(x.shape) * (0.3, 1e-3)[k % 2]
        ref = (x + q).astype(x.dtype)
        options = {key: value for key, value in given.options.items() if key not in ("kl_ratio_weighted", "kl")}
        advantages = 0.5 * -np.expm1(ref - x) / np.exp(x - old)
        inputs = given.inputs | {"advantages": advantages, "ref_log_probs": ref}
        inputs = {key: value for key, value in inputs.items() if key != "weights"}
        yield given._replace(inputs=inputs, options=options | {"kl": "k3", "kl_coef": 0.5, "clip_low": 0.9})


VALUES: dict[str, Draw] = {"clipped": clipped_values, "far": far_values}
POLICIES: dict[str, Draw] = {
    "ordinary": ordinary,
    "dual": dual,
    "at the clip": at_the_clip,
    "sequences": sequences,
    "objectives": objectives,
    "far": far,
    "near": near,
    "cancelling": cancelling,
}
