"""Losses of preferences: their definitions, and the inputs on which they are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ONE
from tests.mpfr.elements import COTANGENTS, DISTANCES, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

NAMES = ("chosen_log_probs", "rejected_log_probs", "ref_chosen_log_probs", "ref_rejected_log_probs")
OF_SEQUENCES = ("log_probs", "ref_log_probs", "desirable")
ALONE = ("simpo", "orpo")
TAU = 0.05


class Sample(NamedTuple):
    """A call."""

    function: str
    inputs: dict[str, np.ndarray]
    parameters: Mapping[str, Any]
    cotangent: Any = 1.0
    reduction: str = "none"


def sigmoid(x: Real) -> Real:
    """σ(x)."""
    return 1 / (1 + gmpy2.exp(-x))


def softplus(x: Real) -> Real:
    """log(1 + e^x)."""
    return gmpy2.log1p(gmpy2.exp(x)) if x < 0 else x + gmpy2.log1p(gmpy2.exp(-x))


def _slope(x: Real) -> Real:
    return sigmoid(x) * sigmoid(-x)


Slopes = tuple[Real, Real, Real]


def _of_x(kind: str, x: Real, smoothing: Real) -> tuple[Real, Real]:
    """Value and slope in x."""
    if kind in ("sigmoid", "simpo"):
        value = (1 - smoothing) * softplus(-x) + smoothing * softplus(x)
        return value, smoothing * sigmoid(x) - (1 - smoothing) * sigmoid(-x)
    if kind == "robust":
        value = (1 - smoothing) * softplus(-x) - smoothing * softplus(x)
        slope = -(1 - smoothing) * sigmoid(-x) - smoothing * sigmoid(x)
        return value / (1 - 2 * smoothing), slope / (1 - 2 * smoothing)
    if kind == "hinge":
        return (1 - x, -ONE) if x < 1 else (ONE * 0, ONE * 0)
    if kind == "exo_pair":
        most, least = -softplus(-x) - gmpy2.log(1 - smoothing), -softplus(x) - gmpy2.log(smoothing)
        return sigmoid(x) * most + sigmoid(-x) * least, _slope(x) * (most - least)
    y = x / real(TAU)
    value = softplus(-x) * sigmoid(-y) + gmpy2.exp(-x) * sigmoid(y)
    turned = (gmpy2.exp(-x) - softplus(-x)) * _slope(y) / real(TAU)
    return value, turned - sigmoid(-x) * sigmoid(-y) - gmpy2.exp(-x) * sigmoid(y)


def _odds(p: Real) -> Real:
    return p - gmpy2.log(-gmpy2.expm1(p))


def _of_sigmoids(kind: str, a: Real, b: Real, beta: Real) -> Slopes:
    if kind == "nca_pair":
        value = softplus(-beta * a) + softplus(beta * a) / 2 + softplus(beta * b) / 2
        return value, beta * (sigmoid(beta * a) / 2 - sigmoid(-beta * a)), beta * sigmoid(beta * b) / 2
    if kind == "apo_zero":
        return sigmoid(-beta * a) + sigmoid(beta * b), -beta * _slope(beta * a), beta * _slope(beta * b)
    x = beta * (a - b)
    return sigmoid(beta * a) + sigmoid(-x), beta * (_slope(beta * a) - _slope(x)), beta * _slope(x)


def define(kind: str, a: Real, b: Real, parameters: Mapping[str, Any]) -> Slopes:
    """The value of a pair, and its derivatives for both differences."""
    beta = real(parameters.get("beta", 0.1))
    smoothing, gamma = real(parameters.get("label_smoothing", 0.0)), real(parameters.get("gamma", 0.0))
    if kind in ("nca_pair", "apo_zero", "apo_down"):
        return _of_sigmoids(kind, a, b, beta)
    if kind == "ipo":
        beyond = a - b - 1 / (2 * beta)
        return beyond**2, 2 * beyond, -2 * beyond
    if kind == "sppo_hard":
        above, below = a - 1 / (2 * beta), b + 1 / (2 * beta)
        return above**2 + below**2, 2 * above, 2 * below
    if kind == "orpo":
        z = _odds(a) - _odds(b)
        pull = beta * sigmoid(-z)
        return -a + beta * softplus(-z), -1 + pull / gmpy2.expm1(a), -pull / gmpy2.expm1(b)
    value, slope = _of_x(kind, beta * (a - b) - gamma, smoothing)
    return value, beta * slope, -beta * slope


def define_sequence(a: Real, desirable: bool, parameters: Mapping[str, Any]) -> tuple[Real, Real]:
    """The value of kto and its derivative."""
    beta = real(parameters.get("beta", 0.1))
    y = beta * (a - max(real(parameters["kl"]), real(0)))
    weight = real(parameters.get("desirable_weight" if desirable else "undesirable_weight", 1.0))
    sign = -1 if desirable else 1
    return weight * sigmoid(sign * y), sign * weight * beta * _slope(y)


PARAMETERS: dict[str, tuple[dict[str, Any], ...]] = {
    "sigmoid": ({}, {"beta": 0.5, "label_smoothing": 0.1}, {"label_smoothing": 0.3}),
    "robust": ({"label_smoothing": 0.1}, {"beta": 0.5, "label_smoothing": 0.3}),
    "hinge": ({}, {"beta": 0.5}),
    "ipo": ({}, {"beta": 0.5}, {"beta": 0.3}),
    "exo_pair": ({"label_smoothing": 0.1}, {"beta": 0.5, "label_smoothing": 1e-3}),
    "nca_pair": ({}, {"beta": 0.7}),
    "sppo_hard": ({}, {"beta": 0.5}),
    "apo_zero": ({}, {"beta": 0.5}),
    "apo_down": ({}, {"beta": 0.5}),
    "discopop": ({}, {"beta": 0.03}),
    "simpo": ({"gamma": 0.3}, {"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.2}),
    "orpo": ({}, {"beta": 0.7}),
}


def _optima(kind: str, parameters: Mapping[str, Any]) -> list[float]:
    """Where x is when a value or a slope is 0, or nearly, or has a kink."""
    smoothing, root = parameters.get("label_smoothing", 0.0), 0.0
    if smoothing:
        root = float(np.log((1 - smoothing) / smoothing))
    zero = {"robust": 2.0 * root, "hinge": 1.0, "ipo": 0.5, "sppo_hard": 0.5, "discopop": 0.045, "nca_pair": np.log(2)}
    return [0.0, root + parameters.get("gamma", 0.0), zero.get(kind, 1.0)]


class Inputs:
    """The kinds of inputs of a kind of loss; each method draws calls that have about as many pairs as asked for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def kinds(self) -> dict[str, Callable[[np.random.Generator, int], Iterator[Sample]]]:
        """By name."""
        return {
            f"{self.kind}, parameters": self.parameters,
            f"{self.kind}, near": self.near,
            f"{self.kind}, magnitudes": self.magnitudes,
        }

    def _draw(self, generator: np.random.Generator, size: int) -> list[np.ndarray]:
        if self.kind in ALONE:
            return [-generator.exponential(1.5, size) - 1e-3 for _ in range(2)]
        chosen, rejected = -generator.exponential(30.0, (2, size))
        return [chosen, rejected, *(chosen, rejected) + 8.0 * generator.standard_normal((2, size))]

    def _sample(self, arrays: Any, dtypes: Any, parameters: Mapping[str, Any], **others: Any) -> Sample:
        inputs = {
            name: np.asarray(array).astype(dtype) for name, array, dtype in zip(NAMES, arrays, dtypes, strict=False)
        }
        return Sample("preference_loss", inputs, {"kind": self.kind, **parameters}, **others)

    def parameters(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Every choice of them, reductions, cotangents without end in binary, mixed and short formats."""
        choices = PARAMETERS[self.kind]
        share = size // len(choices) // 4 | 1
        for k, parameters in enumerate(choices):
            for j, reduction in enumerate(("mean", "sum", "none", "none")):
                each = generator.choice(COTANGENTS, share)
                cotangent = each if reduction == "none" else COTANGENTS[(k + j) % 5]
                dtypes = [(np.float32,) * 4, [INPUT_DTYPES[(k + i) % 4] for i in range(4)]][j % 2]
                dtypes = (ml_dtypes.bfloat16,) * 4 if j == 3 else dtypes
                drawn = self._draw(generator, share)
                yield self._sample(drawn, dtypes, parameters, cotangent=cotangent, reduction=reduction)

    def near(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Where something is 0: what was chosen, or rejected, is moved there, or next to it."""
        choices = PARAMETERS[self.kind]
        share = size // len(choices) + 1
        for parameters in choices:
            drawn = [array.astype(np.float32).astype(np.float64) for array in self._draw(generator, share)]
            if self.kind == "orpo":
                drawn[0] = np.where(
                    generator.random(share) < 0.5, drawn[1], -(10.0 ** generator.uniform(-12, -1, share))
                )
            else:
                beta = parameters.get("beta", 0.1)
                x = generator.choice(_optima(self.kind, parameters), share) / beta
                v, m = drawn[2:] if len(drawn) > 2 else (0.0, 0.0)
                alone = generator.random(share) < 0.5
                drawn[1] = np.where(alone, m, drawn[1])
                drawn[0] = (v + (drawn[1] - m) + x) * (1 + generator.choice([0.0, *DISTANCES], share))
            yield self._sample(drawn, (np.float32,) * 4, parameters, cotangent=0.7)

    def magnitudes(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Tiny and large differences and cotangents, subnormal results among them."""
        for low, high, cotangent in ((-30, -10, 1e-3), (-12, 0, 1e-38), (-3, 1.5, 1e-30), (0, 2, 1 / 3)):
            drawn = [-np.abs(array) for array in self._draw(generator, size // 4)]
            scales = 10.0 ** generator.uniform(low, high, (4, size // 4))
            arrays = [array * scale for array, scale in zip(drawn, scales, strict=False)]
            yield self._sample(arrays, (np.float32,) * 4, PARAMETERS[self.kind][0], cotangent=cotangent)


def of_kto() -> dict[str, Callable[[np.random.Generator, int], Iterator[Sample]]]:
    """The inputs of kto."""

    def draw(generator: np.random.Generator, size: int) -> list[np.ndarray]:
        values = -generator.exponential(30.0, size)
        return [values, values + 8.0 * generator.standard_normal(size), generator.random(size) < 0.5]

    def sample(arrays: Any, dtypes: Any, parameters: Mapping[str, Any], **others: Any) -> Sample:
        inputs = {name: a.astype(dtype) for name, a, dtype in zip(OF_SEQUENCES, arrays, (*dtypes, bool), strict=True)}
        return Sample("kto", inputs, parameters, **others)

    def parameters(generator: np.random.Generator, size: int) -> Iterator[Sample]:
        choices = (
            {"kl": 0.3},
            {"kl": 2.5, "beta": 0.7, "desirable_weight": 1.3},
            {"kl": -1.0, "undesirable_weight": 0.3},
        )
        share = size // 9 | 1
        for k, given in enumerate(choices):
            for j, reduction in enumerate(("mean", "sum", "none")):
                each = generator.choice(COTANGENTS, share)
                cotangent = each if reduction == "none" else COTANGENTS[(k + j) % 5]
                dtypes = (INPUT_DTYPES[(k + j) % 4], INPUT_DTYPES[j])
                yield sample(draw(generator, share), dtypes, given, cotangent=cotangent, reduction=reduction)

    def magnitudes(generator: np.random.Generator, size: int) -> Iterator[Sample]:
        for low, high, cotangent in ((-30, -10, 1e-3), (-12, 0, 1e-38), (-3, 1.5, 1e-30), (0, 2, 1 / 3)):
            values, reference, desirable = draw(generator, size // 4)
            values, reference = np.stack([values, reference]) * 10.0 ** generator.uniform(low, high, (2, size // 4))
            yield sample([values, reference, desirable], (np.float32,) * 2, {"kl": 0.0}, cotangent=cotangent)

    return {"parameters": parameters, "magnitudes": magnitudes}


KINDS = {
    "preference_loss": {name: draw for kind in PARAMETERS for name, draw in Inputs(kind).kinds().items()},
    "kto": of_kto(),
}


def compare(sample: Sample) -> Iterator[Comparison]:
    """Every gradient and the loss of a call against the definition."""
    # Differences of slopes, and of logarithms next to 0, lose many digits.
    with gmpy2.context(precision=4 * PRECISION):
        yield from _compare(sample)


def _true(sample: Sample) -> tuple[list[Real], dict[str, list[Real]]]:
    """Values, and slopes by name."""
    if sample.function == "kto":
        given = [reals(sample.inputs[name]) for name in OF_SEQUENCES[:2]]
        points = zip(*given, sample.inputs["desirable"].tolist(), strict=True)
        alone = [define_sequence(value - reference, flag, sample.parameters) for value, reference, flag in points]
        return [value for value, _ in alone], {"log_probs": [slope for _, slope in alone]}
    nothing = np.zeros(sample.inputs[NAMES[0]].shape)
    given = [reals(sample.inputs.get(name, nothing)) for name in NAMES]
    kind, parameters = sample.parameters["kind"], sample.parameters
    found = [define(kind, w - v, r - m, parameters) for w, r, v, m in zip(*given, strict=True)]
    values, *slopes = ([each[k] for each in found] for k in range(3))
    return values, dict(zip(NAMES[:2], slopes, strict=True))


def _compare(sample: Sample) -> Iterator[Comparison]:
    values, slopes = _true(sample)
    count = len(values)
    divisor = real(count) if sample.reduction == "mean" else ONE
    coefficients = [c / divisor for c in reals(np.broadcast_to(sample.cotangent, count))]
    gradients = {
        name: [c * slope for c, slope in zip(coefficients, each, strict=True)] for name, each in slopes.items()
    }

    def describe(index: int) -> str:
        listed = {name: float(array.reshape(-1)[index % array.size]) for name, array in sample.inputs.items()}
        return f"{sample.reduction} {listed} {dict(sample.parameters)}, element {index} of {count}"

    def comparison(name: str, format_name: str, got: Any, exactly: list[Real]) -> Comparison:
        return Comparison(name, format_name, np.asarray(got).reshape(-1), exact(exactly, (len(exactly),)), describe)

    function = getattr(refloss, sample.function)
    options = {**sample.parameters, "reduction": sample.reduction, "grad_output": sample.cotangent}
    first, *others = gradients
    for format_name, dtype in DTYPES.items():
        result = function(**sample.inputs, **options, grad_dtype=dtype)
        yield comparison(first, format_name, result.grads[first], gradients[first])
    for name in others:
        yield comparison(name, str(sample.inputs[name].dtype), result.grads[name], gradients[name])
    if sample.reduction == "none":
        yield comparison("loss", "float64", result.loss, values)
    else:
        yield comparison("loss", "float64", [result.loss], [gmpy2.fsum(values) / divisor])
