"""Mistaken losses of preferences: of pairs of sequences, and of single ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.preferences import OF_KIND, Options, sigmoid
from refloss.roundoff import real
from refloss.testing.mistakes.elements import Elements, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.error_model.preferences import Pair
    from refloss.testing.mistakes.elements import Step, Tensors

_SQUARES = ("ipo", "sppo_hard", "orpo")


def _kind(given: Elements) -> str:
    return str(given.parameters.get("kind", "sigmoid"))


def _options(given: Elements) -> Options:
    known = given.parameters
    return Options(known.get("beta", 0.1), known.get("label_smoothing", 0.0), known.get("gamma", 0.0))


def _ratios(given: Elements) -> tuple[np.ndarray, np.ndarray]:
    references = (given.inputs.get(f"ref_{name}_log_probs", np.zeros(())) for name in ("chosen", "rejected"))
    first, second = (value - real(own) for value, own in zip((given.x, given.t), references, strict=True))
    return first, second


def _pair(given: Elements, options: Options) -> Pair:
    return OF_KIND[_kind(given)](*_ratios(given), options)


def _exchanged(given: Elements) -> Iterator[Tensors]:
    a, b = _ratios(given)
    wrong = OF_KIND[_kind(given)](b, a, _options(given))
    yield tensors(given, wrong.value, wrong.for_b, wrong.for_a)


def _beta_twice(given: Elements) -> Iterator[Tensors]:
    """In x alone, or in its slope as well."""
    options = _options(given)
    if _kind(given) not in _SQUARES and options.beta != 1.0:
        wrong = _pair(given, options._replace(beta=options.beta**2))
        yield tensors(given, wrong.value, wrong.for_a / options.beta, wrong.for_b / options.beta)
        yield tensors(given, wrong.value, wrong.for_a, wrong.for_b)


def _beta_of_slope(given: Elements) -> Iterator[Tensors]:
    """x has no β; the slope has, or has not."""
    options = _options(given)
    if _kind(given) not in _SQUARES and options.beta != 1.0:
        wrong = _pair(given, options._replace(beta=1.0))
        yield tensors(given, wrong.value, options.beta * wrong.for_a, options.beta * wrong.for_b)


def _rounded_odds(given: Elements) -> Iterator[Tensors]:
    """log(1 − e^p) of a rounded e^p."""
    if _kind(given) == "orpo":
        missing = [(1 - np.exp(p.astype(given.type))).astype(np.float64) for p in (given.x, given.t)]
        first, second = (p - np.log(each) for p, each in zip((given.x, given.t), missing, strict=True))
        z, beta = first - second, _options(given).beta
        value = -given.x + beta * np.logaddexp(0.0, -z)
        pull = beta * sigmoid(-z)
        loose = 16 * float(np.finfo(given.type).eps)
        bounds = tensors(given, loose * (1 + np.abs(value)), loose * (1 + pull / missing[0]), loose * pull / missing[1])
        known = {f"bound.{name}": np.abs(np.nan_to_num(each)) for name, each in bounds.items()}
        yield tensors(given, value, -1 - pull / missing[0], pull / missing[1]) | known


OF_PAIRS: dict[str, Step] = {
    "chosen and rejected are exchanged": _exchanged,
    "beta is applied twice": _beta_twice,
    "beta is applied to the gradient alone": _beta_of_slope,
    "1 − e^p is rounded": _rounded_odds,
}


def _of_sequences(given: Elements, kl: float, weights: tuple[float, float]) -> Tensors:
    beta, sign = given.parameters.get("beta", 0.1), np.where(given.inputs["desirable"] != 0, 1.0, -1.0)
    y = sign * beta * (given.x - given.t - kl)
    weight = np.where(sign > 0, *weights)
    return tensors(given, weight * sigmoid(-y), -sign * weight * beta * sigmoid(y) * sigmoid(-y))


def _weights(given: Elements) -> tuple[float, float]:
    known = given.parameters
    return known.get("desirable_weight", 1.0), known.get("undesirable_weight", 1.0)


def _not_clamped(given: Elements) -> Iterator[Tensors]:
    if given.parameters["kl"] < 0.0:
        yield _of_sequences(given, given.parameters["kl"], _weights(given))


def _no_center(given: Elements) -> Iterator[Tensors]:
    if given.parameters["kl"] > 0.0:
        yield _of_sequences(given, 0.0, _weights(given))


def _not_weighed(given: Elements) -> Iterator[Tensors]:
    if _weights(given) != (1.0, 1.0):
        yield _of_sequences(given, max(given.parameters["kl"], 0.0), (1.0, 1.0))


OF_SEQUENCES: dict[str, Step] = {
    "a negative kl is not clamped at 0": _not_clamped,
    "kl is ignored": _no_center,
    "desirable_weight and undesirable_weight are ignored": _not_weighed,
}
