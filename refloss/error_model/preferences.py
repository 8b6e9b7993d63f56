"""How far honest losses of preferences may be from the exact ones.

What an implementation subtracts, four log-probabilities, is off by k·u·S with S the sum of their magnitudes; so are a
and b, on which all else depends. What that does to a value, or to a slope, is looked up: it is computed for a and b
that are off by as much, or by half of it, to either side, and the largest change counts. To that come the terms of the
formula as people write it. A sigmoid is off by u even where it is next to 0, as 1 − σ is written by many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.preferences import TAU
from refloss.roundoff import STEPS
from refloss.specification import Magnitudes

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.roundoff import Roundoff

Array = np.ndarray
_OFFSETS = (-1.0, -0.5, 0.0, 0.5, 1.0)


class Options(NamedTuple):
    """What a kind is told."""

    beta: float
    smoothing: float = 0.0
    gamma: float = 0.0


class Pair(NamedTuple):
    """The value of each pair, its slopes in a and in b, and the magnitudes of their terms."""

    value: Array
    for_a: Array
    for_b: Array
    terms: Array
    terms_a: Array
    terms_b: Array


def sigmoid(x: Array) -> Array:
    """σ(x)."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return np.asarray(np.logaddexp(0.0, x))


def _of_x(value: Array, slope: Array, terms: Array, steep: Array | float, scale: float) -> Pair:
    """A function of x, or of h, as one of a and b."""
    size = scale * steep * np.ones_like(value)
    return Pair(value, scale * slope, -scale * slope, terms, size, size)


def _smoothed(a: Array, b: Array, o: Options) -> Pair:
    x = o.beta * (a - b) - o.gamma
    missed, hit = (1 - o.smoothing) * softplus(-x), o.smoothing * softplus(x) if o.smoothing else 0.0 * x
    slope = o.smoothing * sigmoid(x) - (1 - o.smoothing) * sigmoid(-x)
    return _of_x(missed + hit, slope, missed + hit, 1.0, o.beta)


def _robust(a: Array, b: Array, o: Options) -> Pair:
    x, whole = o.beta * (a - b), 1 - 2 * o.smoothing
    missed, hit = (1 - o.smoothing) * softplus(-x), o.smoothing * softplus(x) if o.smoothing else 0.0 * x
    slope = -o.smoothing * sigmoid(x) - (1 - o.smoothing) * sigmoid(-x)
    return _of_x((missed - hit) / whole, slope / whole, (missed + hit) / whole, 1 / whole, o.beta)


def _hinge(a: Array, b: Array, o: Options) -> Pair:
    margin = 1 - o.beta * (a - b)
    return _of_x(np.maximum(margin, 0.0), np.where(margin > 0, -1.0, 0.0), np.maximum(margin, 1.0), 1.0, o.beta)


def _ipo(a: Array, b: Array, o: Options) -> Pair:
    beyond = a - b - 0.5 / o.beta
    return _of_x(beyond**2, 2 * beyond, beyond**2, 2 * np.abs(beyond), 1.0)


def _sppo(a: Array, b: Array, o: Options) -> Pair:
    above, below = a - 0.5 / o.beta, b + 0.5 / o.beta
    value = above**2 + below**2
    return Pair(value, 2 * above, 2 * below, value, 2 * np.abs(above), 2 * np.abs(below))


def _exo(a: Array, b: Array, o: Options) -> Pair:
    x, log_most, log_least = o.beta * (a - b), np.log1p(-o.smoothing), np.log(o.smoothing)
    yes, no, missed, hit = sigmoid(x), sigmoid(-x), softplus(-x), softplus(x)
    value = yes * (-missed - log_most) + no * (-hit - log_least)
    terms = yes * (missed - log_most) + no * (hit - log_least)
    return _of_x(value, yes * no * (x - log_most + log_least), terms, terms + 2.0, o.beta)


def _nca(a: Array, b: Array, o: Options) -> Pair:
    x, y = o.beta * a, o.beta * b
    value = softplus(-x) + 0.5 * softplus(x) + 0.5 * softplus(y)
    of_a, of_b = 0.5 * sigmoid(x) - sigmoid(-x), 0.5 * sigmoid(y)
    ones = np.ones_like(value)
    return Pair(value, o.beta * of_a, o.beta * of_b, value, 1.5 * o.beta * ones, 0.5 * o.beta * ones)


def _steep(x: Array) -> Array:
    return np.asarray(sigmoid(x) * sigmoid(-x))


def _apo_zero(a: Array, b: Array, o: Options) -> Pair:
    x, y, ones = o.beta * a, o.beta * b, np.ones_like(a)
    value = sigmoid(-x) + sigmoid(y)
    return Pair(value, -o.beta * _steep(x), o.beta * _steep(y), 2.0 * ones, o.beta * ones, o.beta * ones)


def _apo_down(a: Array, b: Array, o: Options) -> Pair:
    y, x, ones = o.beta * a, o.beta * (a - b), np.ones_like(a)
    value = sigmoid(y) + sigmoid(-x)
    return Pair(
        value, o.beta * (_steep(y) - _steep(x)), o.beta * _steep(x), 2.0 * ones, 2 * o.beta * ones, o.beta * ones
    )


def _discopop(a: Array, b: Array, o: Options) -> Pair:
    x = o.beta * (a - b)
    y, missed = x / TAU, softplus(-x)
    grown = np.exp(-x - softplus(-y))
    value = missed * sigmoid(-y) + grown
    down, up = sigmoid(-x) * sigmoid(-y) + grown, (grown - missed * sigmoid(y)) * sigmoid(-y) / TAU
    steep = sigmoid(-x) + grown + (grown + missed * sigmoid(y)) / TAU
    return _of_x(value, up - down, missed + grown, steep, o.beta)


def _orpo(w: Array, r: Array, o: Options) -> Pair:
    missing_w, missing_r = -np.expm1(w), -np.expm1(r)
    z = w - r - np.log(missing_w) + np.log(missing_r)
    value, pull = o.beta * softplus(-z) - w, o.beta * sigmoid(-z)
    for_w, for_r = 1.0 + pull / missing_w, pull / missing_r
    return Pair(value, -for_w, for_r, value, for_w, for_r)


OF_KIND: Mapping[str, Callable[[Array, Array, Options], Pair]] = {
    "sigmoid": _smoothed,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "sppo_hard": _sppo,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "simpo": _smoothed,
    "orpo": _orpo,
}


def _beside(kind: str, o: Options) -> float:
    """What is subtracted from a and b, or from h, beside references."""
    if kind in ("ipo", "sppo_hard"):
        return abs(0.5 / o.beta)
    if kind == "exo_pair":
        return abs((float(np.log(o.smoothing)) + 1.0) / o.beta)
    return abs(o.gamma / o.beta) if o.gamma else 0.0


def _sizes(*numbers: Array) -> Array:
    """The sum of magnitudes; what is infinite is not rounded."""
    return np.asarray(sum(np.where(np.isfinite(each), np.abs(each), 0.0) for each in numbers))


def _is_exact(x: Array, y: Array, unit: Roundoff) -> Array:
    """Whether a type holds x − y."""
    difference = x - y
    seen = difference - x
    lost = (x - (difference - seen)) - (y + seen)
    shifted = difference * (1.0 + 2.0**53 * unit.between)
    return np.asarray((lost == 0.0) & (shifted - (shifted - difference) == difference))


def _is_rounded(numbers: list[Array], beta: float, unit: Roundoff) -> Array:
    """Whether β·((w − l) − (v − m)), in any order, has more digits than a type, or may have: β is no power of two."""
    w, r, v, m = numbers
    pairs = [(w, r), (v, m), (w, v), (r, m), (w - r, v - m)]
    exact = functools.reduce(np.logical_and, (_is_exact(*each, unit) for each in pairs))
    return np.asarray(~exact | (abs(math.frexp(beta)[0]) != 0.5))


def _looked_up(of: Callable[[Array, Array], tuple[Array, Array, Array]], a: Array, b: Array, off: Array) -> list[Array]:
    """The largest changes of a value and of two slopes where a and b are off."""
    right, largest = of(a, b), [np.zeros(a.shape) for _ in range(3)]
    for i, j in product(_OFFSETS, repeat=2):
        for k, (moved, own) in enumerate(zip(of(a + i * off, b + j * off), right, strict=True)):
            largest[k] = np.fmax(largest[k], np.abs(moved - own))
    return largest


def of_pairs(chosen: Array, rejected: Array, case: Case, unit: Roundoff) -> Magnitudes:
    """The magnitudes of preference_loss."""
    given, nothing = case.parameters, np.zeros(chosen.shape)
    kind = given.get("kind", "sigmoid")
    options = Options(given.get("beta", 0.1), given.get("label_smoothing", 0.0), given.get("gamma", 0.0))
    references = [case.inputs.get(f"ref_{name}_log_probs", nothing) for name in ("chosen", "rejected")]
    if kind == "orpo":
        return _of_odds(chosen, rejected, options.beta, unit)
    off, of = STEPS * unit.between, OF_KIND[kind]
    size = _sizes(chosen, rejected, *references)
    a, b = chosen - references[0], rejected - references[1]
    pair = of(a, b, options)
    if kind == "hinge":
        # Which side of it a pair is on is known where nothing is rounded.
        size = np.where(_is_rounded([chosen, rejected, *references], options.beta, unit), size, 0.0)
    changes = _looked_up(lambda a, b: of(a, b, options)[:3], a, b, off * (size + _beside(kind, options)))
    terms = (pair.terms, pair.terms_a, pair.terms_b)
    return Magnitudes(*(own + change / off for own, change in zip(terms, changes, strict=True)))


def _of_odds(w: Array, l: Array, beta: float, unit: Roundoff) -> Magnitudes:  # noqa: E741
    """Log-odds are off by as much as their logarithms, and a share of 1 − e^p."""
    off = STEPS * unit.between
    missing_w, missing_l = -np.expm1(w), -np.expm1(l)
    z = w - l - np.log(missing_w) + np.log(missing_l)
    size = np.abs(w) + np.abs(l) + np.abs(np.log(missing_w)) + np.abs(np.log(missing_l)) + 2.0
    below = np.minimum(off * size, 700.0)
    no = sigmoid(-(z - below))
    missed = softplus(-z) + (softplus(-(z - below)) - softplus(-z)) / off
    pull = no + (no - sigmoid(-z)) / off
    return Magnitudes(np.abs(w) + beta * missed, 1.0 + beta * pull / missing_w, beta * pull / missing_l)


def of_sequences(log_probs: Array, reference: Array, case: Case, unit: Roundoff) -> Magnitudes:
    """The magnitudes of kto."""
    given: Mapping[str, Any] = case.parameters
    beta, center = given.get("beta", 0.1), max(given["kl"], 0.0)
    weights = [given.get(f"{name}_weight", 1.0) for name in ("desirable", "undesirable")]
    weight = np.where(case.inputs["desirable"] != 0, *weights)
    off = STEPS * unit.between
    y = beta * (log_probs - reference - center)
    size = beta * (_sizes(log_probs, reference) + center)

    def of(y: Array, _: Array) -> tuple[Array, Array, Array]:
        return sigmoid(y), _steep(y), _steep(y)

    value, slope, _ = _looked_up(of, y, y, off * size)
    return Magnitudes(weight * (1.0 + value / off), weight * beta * (1.0 + slope / off), np.zeros(y.shape))
