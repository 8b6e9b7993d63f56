"""Losses of three arrays of corresponding elements, and the inputs on which they are hard to round."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr import definitions
from tests.mpfr.elements import COTANGENTS, DISTANCES, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

Arrays = tuple[np.ndarray, ...]
Definition = Callable[..., tuple[Real, Real, Real, Real]]


class TripleLoss(NamedTuple):
    """A loss: its definition with parameters, and the ranges of its inputs.

    Attributes:
        draw: ordinary inputs.
        near: inputs of which a derivative, or the loss, is 0 or nearly so.
        parameters: calls' parameters that are worth trying.
        far: float64 inputs far out, and what brings their gradients back.
        broadcast: shapes of the three inputs, which broadcast, where the last one may lack the first one's last axis.
    """

    name: str
    arguments: tuple[str, str, str]
    define: Callable[[Mapping[str, Any]], Definition]
    draw: Callable[[np.random.Generator, int], Arrays]
    near: Callable[[np.random.Generator, int], Arrays]
    parameters: tuple[dict[str, Any], ...]
    scaled: tuple[bool, bool, bool] = (True, True, True)
    broadcast: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = ()


class Sample(NamedTuple):
    """A call."""

    inputs: dict[str, np.ndarray]
    parameters: Mapping[str, Any]
    cotangent: Any = 1.0
    reduction: str = "sum"


def _ranks(generator: np.random.Generator, size: int) -> Arrays:
    return (*generator.standard_normal((2, size)), generator.choice([-1.0, 1.0, 0.3], size))


def _near_ranks(generator: np.random.Generator, size: int) -> Arrays:
    """Inputs a margin apart, or nearly, where the hinge is."""
    z, y = generator.standard_normal(size).astype(np.float32), generator.choice([-1.0, 1.0, 0.25], size)
    margin = generator.choice([0.0, 0.5, 0.1], size)
    return (z + margin / y) * (1 + generator.choice(np.array([0.0, *DISTANCES]), size)), z, y


def _variances(generator: np.random.Generator, size: int) -> Arrays:
    return (*generator.standard_normal((2, size)), generator.exponential(1.0, size))


def _near_variances(generator: np.random.Generator, size: int) -> Arrays:
    """Variances that are the squared distance, or nearly, and distances that make the loss 0, or nearly."""
    x, t = generator.standard_normal((2, size)).astype(np.float32)
    distance = x.astype(np.float64) - t
    v = np.where(generator.random(size) < 0.5, distance * distance, np.exp(-generator.exponential(2.0, size)))
    constant = generator.choice([0.0, np.log(2 * np.pi)], size)
    root = np.sqrt(np.maximum(-v * (np.log(v) + constant), 0.0))
    t = np.where(v == distance * distance, t, x - root)
    # Quarters, where both are equal to the last bit.
    whole = generator.random(size) < 0.1
    x, t = np.where(whole, np.round(4 * x) / 4, x), np.where(whole, np.round(4 * t) / 4, t)
    v = np.where(whole, np.maximum((x - t) ** 2, 0.0625), v)
    return x, t, v * (1 + generator.choice(np.array([0.0, 0.0, *DISTANCES, 2.0**-40, 2.0**-50]), size))


LOSSES = {
    loss.name: loss
    for loss in (
        TripleLoss(
            "margin_ranking",
            ("input1", "input2", "target"),
            lambda p: lambda x, z, y: definitions.margin_ranking(x, z, y, real(p["margin"])),
            _ranks,
            _near_ranks,
            ({"margin": 0.0}, {"margin": 0.5}, {"margin": 0.1}, {"margin": -0.3}),
        ),
        TripleLoss(
            "gaussian_nll",
            ("input", "target", "var"),
            lambda p: functools.partial(definitions.gaussian_nll, eps=real(p["eps"]), full=p["full"]),
            _variances,
            _near_variances,
            tuple({"eps": eps, "full": full} for full in (False, True) for eps in (1e-6, 0.1)),
            broadcast=(
                ((50, 7), (50, 7), (50, 1)),
                ((6, 50), (50,), (6,)),
                ((30, 11), (30, 1), (1, 11)),
                ((2, 5, 30), (5, 30), (2, 1, 30)),
                ((300,), (300,), (1,)),
                ((1, 40), (7, 1), (1,)),
            ),
        ),
    )
}


class Inputs:
    """The kinds of inputs of a loss; each method draws calls that have about as many elements as asked for."""

    def __init__(self, loss: TripleLoss) -> None:
        self.loss = loss

    def kinds(self) -> dict[str, Callable[[np.random.Generator, int], Iterator[Sample]]]:
        """By name."""
        kinds: dict[str, Callable[[np.random.Generator, int], Iterator[Sample]]] = {
            "parameters": self.parameters,
            "short numbers": self.short_numbers,
            "near": self.near,
            "magnitudes": self.magnitudes,
            "mixed formats": self.mixed_formats,
        }
        return kinds | ({"broadcast": self.broadcast} if self.loss.broadcast else {})

    def _fitted(self, arrays: Arrays, dtypes: Any = (np.float32,) * 3, **others: Any) -> Sample:
        inputs = {
            name: np.asarray(array).astype(dtype)
            for name, array, dtype in zip(self.loss.arguments, arrays, dtypes, strict=True)
        }
        return Sample(inputs, **{"parameters": self.loss.parameters[0], **others})

    def parameters(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Every choice of parameters, and cotangents without end in binary."""
        share = size // len(self.loss.parameters) // 3
        for k, parameters in enumerate(self.loss.parameters):
            for reduction in ("mean", "sum", "none"):
                # Odd, so that "mean" divides by no power of two.
                drawn = self.loss.draw(generator, share | 1)
                each = generator.choice(COTANGENTS, share | 1)
                cotangent = each if reduction == "none" else COTANGENTS[k % 5]
                yield self._fitted(drawn, cotangent=cotangent, reduction=reduction, parameters=parameters)

    def short_numbers(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Numbers with few bits."""
        for k, cotangent in enumerate(COTANGENTS):
            drawn = self.loss.draw(generator, size // len(COTANGENTS) + 1)
            parameters = self.loss.parameters[k % len(self.loss.parameters)]
            yield self._fitted(drawn, (ml_dtypes.bfloat16,) * 3, cotangent=cotangent, parameters=parameters)

    def near(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Where something is 0."""
        share = size // 2 // len(self.loss.parameters) + 1
        for parameters in self.loss.parameters:
            for dtypes in ((np.float32,) * 3, (np.float64, np.float32, np.float64)):
                drawn = self.loss.near(generator, share)
                yield self._fitted(drawn, dtypes, cotangent=0.7, reduction="none", parameters=parameters)

    def magnitudes(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Tiny and large inputs and cotangents, subnormal results among them."""
        for low, high, cotangent in ((-30, -10, 1e-3), (-20, 0, 1e-38), (-3, 2.5, 1e-30), (1, 6, 1 / 3)):
            drawn = self.loss.draw(generator, size // 4)
            scales = 10.0 ** generator.uniform(low, high, (3, size // 4))
            arrays = tuple(
                array * (scale if scaled else 1.0)
                for array, scale, scaled in zip(drawn, scales, self.loss.scaled, strict=True)
            )
            yield self._fitted(arrays, cotangent=cotangent)

    def mixed_formats(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Inputs of three formats."""
        for k in range(len(INPUT_DTYPES)):
            dtypes = tuple(INPUT_DTYPES[(k + j) % len(INPUT_DTYPES)] for j in range(3))
            drawn = self.loss.draw(generator, size // len(INPUT_DTYPES))
            yield self._fitted(drawn, dtypes, cotangent=COTANGENTS[k])

    def broadcast(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Inputs of fewer elements than others have, and of many formats."""
        for k in range(max(size // 2000, 1)):
            for shapes in self.loss.broadcast:
                drawn = self.loss.draw(generator, max(int(np.prod(shape)) for shape in shapes))
                arrays = [array[: int(np.prod(own))].reshape(own) for array, own in zip(drawn, shapes, strict=True)]
                dtypes = (np.float32, np.float32, INPUT_DTYPES[k % 4])
                reduction = ("mean", "none", "sum")[k % 3]
                each = generator.choice(COTANGENTS, np.broadcast_shapes(*shapes[:2]))
                cotangent = each if reduction == "none" else COTANGENTS[k % 5]
                yield self._fitted(tuple(arrays), dtypes, cotangent=cotangent, reduction=reduction)


def compare(loss: TripleLoss, sample: Sample) -> Iterator[Comparison]:
    """Every gradient and the loss of a call against the definition."""
    with gmpy2.context(precision=PRECISION):
        yield from _compare(loss, sample)


def _compare(loss: TripleLoss, sample: Sample) -> Iterator[Comparison]:
    first, second, last = (array.shape for array in sample.inputs.values())
    shape = np.broadcast_shapes(first, second)
    own = [first, second, (*last, *(1,) * (len(first) - len(last)))]
    # Where an input is broadcast, which of its elements each element of the loss has.
    places = {name: _places(array, shape) for name, array in zip(sample.inputs, own, strict=True)}
    given = {name: reals(array) for name, array in sample.inputs.items()}
    points = zip(*([given[name][k] for k in places[name]] for name in loss.arguments), strict=True)
    define = loss.define(sample.parameters)
    values, *slopes = zip(*(define(*point) for point in points), strict=True)
    divisor = real(len(values)) if sample.reduction == "mean" else definitions.ONE
    coefficients = [c / divisor for c in reals(np.broadcast_to(sample.cotangent, shape))]

    gradients = {}
    for name, of_elements in zip(loss.arguments, slopes, strict=True):
        terms: list[list[Real]] = [[] for _ in given[name]]
        for k, c, slope in zip(places[name], coefficients, of_elements, strict=True):
            terms[k].append(c * slope)
        gradients[name] = [gmpy2.fsum(each) for each in terms]

    def describe(index: int) -> str:
        listed = {name: float(array.reshape(-1)[index % array.size]) for name, array in sample.inputs.items()}
        each = float(np.reshape(sample.cotangent, -1)[index % np.size(sample.cotangent)])
        return f"{sample.reduction} {listed} {sample.parameters} grad_output {each}, element {index} of {shape}"

    def comparison(name: str, format_name: str, got: Any, exactly: list[Real]) -> Comparison:
        return Comparison(name, format_name, np.asarray(got).reshape(-1), exact(exactly, (len(exactly),)), describe)

    function = getattr(refloss, loss.name)
    options = {**sample.parameters, "reduction": sample.reduction, "grad_output": sample.cotangent}
    for format_name, dtype in DTYPES.items():
        result = function(**sample.inputs, **options, grad_dtype=dtype)
        yield comparison(loss.arguments[0], format_name, result.grads[loss.arguments[0]], gradients[loss.arguments[0]])
    for name in loss.arguments[1:]:
        yield comparison(name, str(sample.inputs[name].dtype), result.grads[name], gradients[name])
    if sample.reduction == "none":
        yield comparison("loss", "float64", result.loss, list(values))
    else:
        yield comparison("loss", "float64", [result.loss], [gmpy2.fsum(values) / divisor])


def _places(narrow: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    """Of every element, the index of what is broadcast to it."""
    index = np.arange(int(np.prod(narrow))).reshape(narrow)
    return np.broadcast_to(index, shape).reshape(-1).tolist()
