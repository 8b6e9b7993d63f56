"""Losses of corresponding elements, and the inputs on which they are hard to round."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr import definitions
from tests.mpfr.definitions import Definition
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]

# c·(a short number) lies near a tie of short formats for these.
COTANGENTS = (1 / 3, -0.1, 0.7, -1 / 6, 1 / 7)
# How near a target comes to where a derivative is 0.
DISTANCES = tuple(2.0**-k for k in (12, 14, 16, 17, 18, 20, 22, 24))
INPUT_DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)


class Sample(NamedTuple):
    """A call: two arrays, and what goes with them."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray | None = None
    factor: np.ndarray | None = None  # pos_weight
    cotangent: Any = 1.0
    reduction: str = "sum"
    parameters: dict[str, Any] = {}  # noqa: RUF012


class ElementLoss(NamedTuple):
    """A loss of elements: its definition with parameters, and the ranges of its inputs.

    Attributes:
        define: the definition for a call's parameters.
        close: a target near where ∂/∂x is 0, or both terms of the loss are equal.
        parameters: values worth trying, by name.
        crossing: pairs near where a target's derivative is 0.
        far: pairs whose results are at the ends of float64.
        divisor: what "mean" divides by: the number of "elements", of "columns", or the sum of "weights".
        unit_interval: which of the inputs are in [0, 1].
        call: what computes it, refloss's function of that name if None.
    """

    name: str
    define: Callable[[dict[str, Any]], Definition]
    draw: Draw
    close: Callable[[np.ndarray], np.ndarray]
    crossing: Draw | None = None
    far: Draw | None = None
    parameters: dict[str, tuple[Any, ...]] = {}  # noqa: RUF012
    arguments: tuple[str, str] = ("input", "target")
    weight: str = ""  # "", "constant" or "differentiable"
    factor: bool = False
    divisor: str = "elements"
    target_has_gradient: bool = True
    unit_interval: tuple[bool, bool] = (False, False)
    call: Callable[..., Any] | None = None


def _values(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return generator.standard_normal(size), generator.standard_normal(size)


def _logits(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return generator.standard_normal(size) * 3, generator.random(size)


def _hard_logits(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    x, t = _logits(generator, size)
    return x, np.where(generator.random(size) < 0.5, np.round(t), t)


def _probabilities(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return generator.random(size), generator.random(size)


def _log_probabilities(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return -generator.exponential(3.0, size), generator.random(size)


def _both_logs(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return -generator.exponential(3.0, size), -generator.exponential(3.0, size)


def _margins(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Signs, and now and then what is none."""
    sign = generator.choice(np.array([1.0, -1.0]), size)
    return generator.standard_normal(size) * 3, np.where(generator.random(size) < 0.8, sign, generator.random(size) * 3)


def _far_margins(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = generator.uniform(-760, 760, size), generator.choice(np.array([1.0, -1.0]), size)
    return x, np.where(generator.random(size) < 0.5, y, y * generator.random(size))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x.astype(np.float64)))


def _small_logits(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a half and a logit near 0 leave little."""
    x = generator.standard_normal(size) * 10.0 ** generator.integers(-30, 0, size)
    return x, np.where(generator.random(size) < 0.5, 0.5, 0.5 + x * generator.random(size))


def _far_logits(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return generator.uniform(-760, 760, size), np.round(generator.random(size))


def _far_logs(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return -(10.0 ** generator.uniform(0, 8, size)), generator.uniform(-760, -600, size)


def _far_values(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    x, t = generator.standard_normal((2, size)) * 10.0 ** generator.uniform(-200, 200, size)
    return x, np.where(generator.random(size) < 0.3, 0.0, t)


def _at_log_plus_one(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where log t + 1 − x is almost 0."""
    t = generator.random(size).astype(np.float32).astype(np.float64) + 1e-9
    return np.log(t) + 1, t


def _one_above(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where u + 1 − x is almost 0."""
    u = -generator.exponential(3.0, size)
    return u.astype(np.float32) + np.float32(1), u


def _counts(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.clip(generator.standard_normal(size) * 2, -2.2, 2.2)
    return x, np.where(generator.random(size) < 0.7, generator.poisson(np.exp(x)), generator.exponential(2.0, size))


def _rates(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    x, t = _counts(generator, size)
    return np.exp(x), t


def _equal_terms(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where e^x is t·x, or x is log t and a little more."""
    x = generator.uniform(0.6, 6.0, size).astype(np.float32).astype(np.float64)
    t = np.exp(x)
    for _ in range(20):
        t = np.exp(x - 0.5 / t)
    return x, np.where(generator.random(size) < 0.5, t, np.exp(x) / x)


def _equal_terms_of_rates(generator: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where x is t·log x, or log x is log t and a little more."""
    x = generator.uniform(1.5, 40.0, size).astype(np.float32).astype(np.float64)
    t = x.copy()
    for _ in range(20):
        t = x * np.exp(-0.5 / t)
    return x, np.where(generator.random(size) < 0.5, t, x / np.log(x))


def _poisson(p: dict[str, Any]) -> Definition:
    return functools.partial(
        definitions.poisson_nll, log_input=p.get("log_input", True), full=p["full"], eps=real(p["eps"])
    )


_VALUES: dict[str, Any] = {"draw": _values, "close": lambda x: x.astype(np.float64), "far": _far_values}
_FOCUS = {"alpha": (0.25, 0.5, -1.0, 0.6), "gamma": (2.0, 1.5, 0.0, 100.0)}

LOSSES = {
    loss.name: loss
    for loss in (
        ElementLoss("mse", lambda _: definitions.mse, **_VALUES, weight="differentiable", divisor="weights"),
        ElementLoss("l1", lambda _: definitions.l1, **_VALUES, weight="differentiable", divisor="weights"),
        ElementLoss(
            "smooth_l1",
            lambda p: lambda x, t: definitions.smooth_l1(x, t, real(p["beta"])),
            **_VALUES,
            parameters={"beta": (1.0, 0.1, 3.0, 0.0)},
        ),
        ElementLoss(
            "huber",
            lambda p: lambda x, t: definitions.huber(x, t, real(p["delta"])),
            **_VALUES,
            weight="differentiable",
            parameters={"delta": (1.0, 0.1, 3.0)},
        ),
        ElementLoss(
            "bce",
            lambda _: definitions.bce,
            draw=_probabilities,
            close=lambda x: x.astype(np.float64),
            weight="constant",
            unit_interval=(True, True),
        ),
        ElementLoss(
            "bce_with_logits",
            lambda _: definitions.bce_with_logits,
            draw=_hard_logits,
            close=_sigmoid,
            crossing=_small_logits,
            far=_far_logits,
            arguments=("logits", "target"),
            weight="constant",
            factor=True,
            unit_interval=(False, True),
        ),
        ElementLoss(
            "soft_margin",
            lambda _: definitions.soft_margin,
            draw=_margins,
            close=np.sign,
            far=_far_margins,
            target_has_gradient=False,
        ),
        ElementLoss(
            "hinge_embedding",
            lambda p: lambda x, y: definitions.hinge_embedding(x, y, real(p["margin"])),
            draw=_margins,
            close=np.sign,
            parameters={"margin": (1.0, 0.1, 3.0, -0.5)},
            target_has_gradient=False,
        ),
        ElementLoss(
            "kl_div",
            lambda p: definitions.kl_div_of_log if p["log_target"] else definitions.kl_div,
            draw=_log_probabilities,
            close=lambda x: np.exp(x.astype(np.float64)),
            crossing=_at_log_plus_one,
            parameters={"log_target": (False,)},
            unit_interval=(False, True),
        ),
        ElementLoss(
            "kl_div of logs",
            lambda p: definitions.kl_div_of_log if p["log_target"] else definitions.kl_div,
            draw=_both_logs,
            close=lambda x: x.astype(np.float64),
            crossing=_one_above,
            far=_far_logs,
            parameters={"log_target": (True,)},
        ),
        ElementLoss(
            "poisson_nll",
            _poisson,
            draw=_counts,
            close=lambda x: np.exp(x.astype(np.float64)),
            crossing=_equal_terms,
            parameters={"full": (False, True), "eps": (1e-8,)},
        ),
        ElementLoss(
            "poisson_nll of rates",
            _poisson,
            draw=_rates,
            close=lambda x: x.astype(np.float64),
            crossing=_equal_terms_of_rates,
            parameters={"log_input": (False,), "full": (False, True), "eps": (1e-8, 0.1)},
        ),
        ElementLoss(
            "sigmoid_focal",
            lambda p: lambda x, t: definitions.sigmoid_focal(x, t, real(p["alpha"]), real(p["gamma"])),
            draw=_hard_logits,
            close=_sigmoid,
            crossing=_small_logits,
            far=_far_logits,
            parameters=_FOCUS,
            arguments=("inputs", "targets"),
            divisor="columns",
            unit_interval=(False, True),
        ),
        ElementLoss(
            "varifocal",
            lambda p: lambda x, t: definitions.varifocal(x, t, real(p["alpha"]), real(p["gamma"])),
            draw=_hard_logits,
            close=_sigmoid,
            far=_far_logits,
            parameters={"alpha": (0.75, 0.6), "gamma": (2.0, 1.5, 0.0, 100.0)},
            arguments=("inputs", "targets"),
            divisor="columns",
            target_has_gradient=False,
            unit_interval=(False, True),
        ),
    )
}


class Inputs:
    """The kinds of inputs of a loss; each method draws calls that have about as many elements as asked for."""

    def __init__(self, loss: ElementLoss) -> None:
        self.loss = loss

    def kinds(self) -> dict[str, Callable[[np.random.Generator, int], Iterator[Sample]]]:
        """By name."""
        kinds: dict[str, Callable[[np.random.Generator, int], Iterator[Sample]]] = {
            "ordinary": self.ordinary,
            "cotangents": self.cotangents,
            "short numbers": self.short_numbers,
            "none": self.none,
            "near": self.near,
            "magnitudes": self.magnitudes,
            "mixed formats": self.mixed_formats,
        }
        if self.loss.parameters:
            kinds["parameters"] = self.parameters
        if self.loss.far is not None:
            kinds["far"] = self.far
        if self.loss.crossing is not None:
            kinds["zero crossings"] = self.zero_crossings
        if self.loss.weight:
            kinds["weights"] = self.weights
        if self.loss.weight == "differentiable":
            kinds["few weights"] = self.few_weights
        if self.loss.factor:
            kinds["pos_weight"] = self.factors
        return kinds

    def _fitted(self, x: Any, t: Any, dtypes: Any = (np.float32, np.float32), **others: Any) -> Sample:
        """Arrays in formats, within the ranges of the loss."""
        arrays = [np.asarray(values).astype(dtype) for values, dtype in zip((x, t), dtypes, strict=True)]
        for k, bounded in enumerate(self.loss.unit_interval):
            arrays[k] = np.clip(arrays[k], 0, 1).astype(dtypes[k]) if bounded else arrays[k]
        usual = {name: values[0] for name, values in self.loss.parameters.items()}
        return Sample(arrays[0], arrays[1], **{"parameters": usual, **others})

    def _all_parameters(self) -> list[dict[str, Any]]:
        names = list(self.loss.parameters)
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*self.loss.parameters.values())]

    def _parameters(self, generator: np.random.Generator) -> dict[str, Any]:
        return {name: values[generator.integers(len(values))] for name, values in self.loss.parameters.items()}

    def ordinary(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """As one would test it."""
        yield self._fitted(*self.loss.draw(generator, size))

    def cotangents(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Numbers without end in binary."""
        for k, cotangent in enumerate(COTANGENTS):
            # Odd, so that "mean" divides by no power of two.
            drawn = self.loss.draw(generator, size // len(COTANGENTS) | 1)
            yield self._fitted(
                *drawn,
                (np.float32, INPUT_DTYPES[k % 3]),
                cotangent=cotangent,
                reduction="sum" if k else "mean",
                parameters=self._parameters(generator),
            )

    def short_numbers(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Numbers with few bits."""
        for cotangent in COTANGENTS:
            drawn = self.loss.draw(generator, size // len(COTANGENTS) + 1)
            scale = np.ldexp(1.0, generator.integers(-4, 9)) if self.loss.unit_interval == (False, False) else 1.0
            yield self._fitted(
                drawn[0] * scale,
                drawn[1] * scale,
                (ml_dtypes.bfloat16, ml_dtypes.bfloat16),
                cotangent=cotangent,
                parameters=self._parameters(generator),
            )

    def none(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """A cotangent for every element."""
        cotangent = generator.choice(np.array([*COTANGENTS, 1.0, -2.0, 0.3]), size)
        drawn = self.loss.draw(generator, size)
        yield self._fitted(*drawn, cotangent=cotangent, reduction="none", parameters=self._parameters(generator))

    def near(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Targets at and near what makes the gradient 0."""
        for dtype in (np.float32, np.float64):
            x = self.loss.draw(generator, size // 2)[0].astype(np.float32)
            distance = generator.choice(np.array([0.0, *DISTANCES]), x.size)
            target = self.loss.close(x) * (1 + distance * generator.choice(np.array([-1.0, 1.0, 0.5, -0.3]), x.size))
            cotangent = COTANGENTS[generator.integers(len(COTANGENTS))]
            yield self._fitted(x, target, (np.float32, dtype), cotangent=cotangent, reduction="none")

    def zero_crossings(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Inputs near where another derivative is 0."""
        assert self.loss.crossing is not None
        several = self._all_parameters()
        for parameters in several:
            for dtypes in ((np.float32, np.float32), (np.float64, np.float32)):
                drawn = self.loss.crossing(generator, size // 2 // len(several) + 1)
                yield self._fitted(*drawn, dtypes, cotangent=0.7, reduction="none", parameters=parameters)

    def parameters(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """All values of the parameters."""
        several = self._all_parameters()
        for k, parameters in enumerate(several):
            drawn = self.loss.draw(generator, size // len(several) + 1)
            yield self._fitted(*drawn, cotangent=COTANGENTS[k % 5], reduction="none", parameters=parameters)

    def far(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Inputs in float64 far out, and cotangents that bring the gradients back."""
        assert self.loss.far is not None
        x, t = self.loss.far(generator, size)
        largest = np.maximum(np.abs(x), np.abs(t))
        cotangent = 0.7 / np.where(largest > 1e9, largest, 1.0)
        yield self._fitted(x, t, (np.float64, np.float64), cotangent=cotangent, reduction="none")

    def magnitudes(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Tiny and large inputs and cotangents, subnormal results among them."""
        for low, high, cotangent in ((-44, -20, 1e-3), (-30, 0, 1e-38), (-3, 2.5, 1e-30), (1, 2.2, 1 / 3)):
            x, t = self.loss.draw(generator, size // 4)
            scales = 10.0 ** generator.uniform(low, high, (2, x.size))
            both = [
                values * (np.minimum(scale, 1.0) if bounded else scale)
                for values, scale, bounded in zip((x, t), scales, self.loss.unit_interval, strict=True)
            ]
            yield self._fitted(*both, cotangent=cotangent)

    def weights(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Weights in float64."""
        for k, reduction in enumerate(("mean", "sum", "none")):
            x, t = self.loss.draw(generator, size // 3 | 1)
            weight = generator.uniform(0.01, 3.0, x.size)
            yield self._fitted(x, t, weight=weight, reduction=reduction, cotangent=COTANGENTS[k])

    def few_weights(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Few and close elements, whose weights' gradients cancel."""
        for _ in range(min(size // 3, 500)):
            many = generator.integers(1, 4)
            x = 1 + generator.integers(0, 4, many) * 2.0**-23
            weight = generator.integers(1, 4, many).astype(np.float32)
            cotangent = COTANGENTS[generator.integers(5)]
            yield self._fitted(x, np.zeros(many), weight=weight, reduction="mean", cotangent=cotangent)

    def factors(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """pos_weight, 0 among them, and logits far out."""
        for spread in (1.0, 30.0):
            x, t = self.loss.draw(generator, size // 2)
            factor = generator.choice(np.array([0.0, 1.0, 0.1, 3.0, 1 / 3]), x.size)
            cotangent = generator.choice(COTANGENTS, x.size)
            yield self._fitted(x * spread, t, factor=factor, reduction="none", cotangent=cotangent)

    def mixed_formats(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Inputs of two formats."""
        for k in range(len(INPUT_DTYPES)):
            dtypes = (INPUT_DTYPES[k], INPUT_DTYPES[(k + 1) % len(INPUT_DTYPES)])
            drawn = self.loss.draw(generator, size // len(INPUT_DTYPES))
            yield self._fitted(*drawn, dtypes, cotangent=COTANGENTS[k], parameters=self._parameters(generator))


def compare(loss: ElementLoss, sample: Sample) -> Iterator[Comparison]:
    """Every gradient and the loss of a call against the definition."""
    with gmpy2.context(precision=PRECISION):
        yield from _compare(loss, sample)


def _compare(loss: ElementLoss, sample: Sample) -> Iterator[Comparison]:
    x, t = sample.first, sample.second
    definition = loss.define(sample.parameters)
    inputs = [reals(x), reals(t)]
    if sample.factor is not None:
        inputs.append(reals(sample.factor))
    values, first, second = zip(*map(definition, *inputs), strict=True)
    ones = [definitions.ONE] * len(values)
    weights = ones if sample.weight is None else reals(sample.weight)
    each = reals(np.broadcast_to(sample.cotangent, x.shape))
    divisor = _divisor(loss, sample, weights)
    coefficients = [c * w / divisor for c, w in zip(each, weights, strict=True)]

    def describe(index: int) -> str:
        arrays = _arrays(loss, sample)
        if np.size(sample.cotangent) > 1:
            arrays["grad_output"] = np.asarray(sample.cotangent)
        # A few elements are shown as they are: they may depend on each other.
        listed: dict[str, Any] = {
            name: array.astype(float).tolist() if x.size <= 4 else float(array.reshape(-1)[index])
            for name, array in arrays.items()
        }
        listed = {"grad_output": float(np.reshape(sample.cotangent, -1)[0]), **listed, **sample.parameters}
        return f"{x.dtype}/{t.dtype} {sample.reduction} {listed}, element {index} of {x.size}"

    def comparison(name: str, format_name: str, got: Any, exactly: list[Real]) -> Comparison:
        return Comparison(name, format_name, np.asarray(got).reshape(-1), exact(exactly, (len(exactly),)), describe)

    shape = (1, x.size) if loss.divisor == "columns" else x.shape
    call = {name: array.reshape(shape) for name, array in _arrays(loss, sample).items()}
    options = {"reduction": sample.reduction, **sample.parameters}
    cotangent = sample.cotangent if np.size(sample.cotangent) == 1 else np.reshape(sample.cotangent, shape)
    for_first = [c * slope for c, slope in zip(coefficients, first, strict=True)]
    function = loss.call or getattr(refloss, loss.name.partition(" ")[0])
    for format_name, dtype in DTYPES.items():
        result = function(**call, **options, grad_output=cotangent, grad_dtype=dtype)
        yield comparison(loss.arguments[0], format_name, result.grads[loss.arguments[0]], for_first)
    if loss.target_has_gradient:
        for_second = [c * slope for c, slope in zip(coefficients, second, strict=True)]
        yield comparison(loss.arguments[1], str(t.dtype), result.grads[loss.arguments[1]], for_second)
    weighted = [w * value for w, value in zip(weights, values, strict=True)]
    if "weight" in result.grads and sample.weight is not None:
        slopes = _of_weights(loss, sample, values, weights, each)
        yield comparison("weight", str(sample.weight.dtype), result.grads["weight"], slopes)
    if sample.reduction == "none":
        yield comparison("loss", "float64", result.loss, weighted)
    else:
        yield comparison("loss", "float64", [result.loss], [gmpy2.fsum(weighted) / divisor])


def _arrays(loss: ElementLoss, sample: Sample) -> dict[str, np.ndarray]:
    arrays = {loss.arguments[0]: sample.first, loss.arguments[1]: sample.second}
    others = {"weight": sample.weight, "pos_weight": sample.factor}
    return arrays | {name: array for name, array in others.items() if array is not None}


def _divisor(loss: ElementLoss, sample: Sample, weights: list[Real]) -> Real:
    if sample.reduction != "mean":
        return definitions.ONE
    if loss.divisor == "weights":
        return gmpy2.fsum(weights)
    return real(sample.first.size)


def _of_weights(loss: ElementLoss, sample: Sample, values: Any, weights: list[Real], each: list[Real]) -> list[Real]:
    """∂/∂w: of a weighted mean c·(ℓ − L)/Σw, over one denominator so that what is 0 is 0."""
    if sample.reduction == "mean" and loss.divisor == "weights":
        total = gmpy2.fsum(weights)
        weighted = gmpy2.fsum([w * value for w, value in zip(weights, values, strict=True)])
        return [c * (value * total - weighted) / (total * total) for c, value in zip(each, values, strict=True)]
    divisor = _divisor(loss, sample, weights)
    return [c * value / divisor for c, value in zip(each, values, strict=True)]
