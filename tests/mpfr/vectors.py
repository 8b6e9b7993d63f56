"""Losses of rows of vectors, and the inputs on which they are hard to round."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np
from gmpy2 import mpfr

import refloss
from tests.mpfr.definitions import ONE, ZERO, sign
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.rounding import DTYPES, Comparison, Real, exact, real, reals

EXACT = 2000
"""Bits of sums of products of float64."""

FORMATS = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)


class Sample(NamedTuple):
    """A call: arrays by name, those of vectors [N, D] first."""

    inputs: dict[str, np.ndarray]
    parameters: dict[str, Any]
    cotangent: Any = 1.0
    reduction: str = "sum"


class Row(NamedTuple):
    """The loss of a row, and its slopes by input."""

    loss: Real
    slopes: dict[str, list[Real]]


Definition = Callable[[dict[str, Any], dict[str, Any]], Row]
Draw = Callable[[np.random.Generator, int], Iterator[Sample]]


def class_margins(x: list[Real], targets: list[int], margin: Real, p: int) -> tuple[Real, list[Real]]:
    """Σ over targets k and others j of max(0, m − x_k + x_j)^p/C, and its slopes."""
    total, slopes = ZERO, [ZERO] * len(x)
    for k in targets:
        for j in range(len(x)):
            z = margin - x[k] + x[j]
            if j in targets or z <= 0:
                continue
            slope = ONE if p == 1 else 2 * z
            total += z**p
            slopes[j] += slope
            slopes[k] -= slope
    return total / len(x), [slope / len(x) for slope in slopes]


def multi_margin(row: dict[str, Any], parameters: dict[str, Any]) -> Row:
    """One target, and its weight."""
    label = int(row["target"])
    margin, p = real(parameters.get("margin", 1.0)), parameters.get("p", 1)
    loss, slopes = class_margins(reals(row["input"]), [label], margin, p)
    weight = real(row["weight"][label]) if "weight" in row else ONE
    return Row(weight * loss, {"input": [weight * slope for slope in slopes]})


def multilabel_margin(row: dict[str, Any], _: dict[str, Any]) -> Row:
    """The targets before the first −1, of which each counts as often as it is named."""
    targets = list(itertools.takewhile(lambda label: label >= 0, row["target"].tolist()))
    loss, slopes = class_margins(reals(row["input"]), targets, ONE, 1)
    return Row(loss, {"input": slopes})


_ROUNDINGS = mpfr(2) ** -1500
"""What is below it is 0, but for roots and powers."""


def distance(x: list[Real], y: list[Real], eps: Real, p: float) -> tuple[Real, list[Real]]:
    """‖x − y + ε‖_p, and its slopes in x."""
    d = [a - b + eps for a, b in zip(x, y, strict=True)]
    if p == 1:
        return gmpy2.fsum([abs(each) for each in d]), [sign(each) for each in d]
    if p == np.inf:
        largest = max(abs(each) for each in d)
        hit = [abs(each) == largest for each in d]
        return largest, [sign(each) * of / sum(hit) for each, of in zip(d, hit, strict=True)]
    if not any(d):
        return ZERO, [ZERO] * len(d)
    if p == 2:
        norm = gmpy2.sqrt(gmpy2.fsum([each * each for each in d]))
        return norm, [each / norm for each in d]
    power = real(p)
    norm = gmpy2.fsum([abs(each) ** power for each in d]) ** (1 / power)
    return norm, [sign(each) * (abs(each) / norm) ** (power - 1) if each else ZERO for each in d]


def triplet_margin(row: dict[str, Any], parameters: dict[str, Any]) -> Row:
    """max(0, m + d(a, p) − d(a, n)), perhaps with d(p, n) where that is smaller."""
    names = ("anchor", "positive", "negative")
    a, b, c = (reals(row[name]) for name in names)
    options = {"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False} | parameters
    given = real(options["eps"]), options["p"]
    near, far = distance(a, b, *given), distance(a, c, *given)
    share, across = ONE, (far[0], [ZERO] * len(a))
    if options["swap"]:
        across = distance(b, c, *given)
        gap = far[0] - across[0]
        share = mpfr(0.5) if abs(gap) < _ROUNDINGS * far[0] else (ONE if gap < 0 else ZERO)
    end = min(far[0], across[0])
    z = real(options["margin"]) + near[0] - end
    if abs(z) < _ROUNDINGS * end:
        z = ZERO
    if z < 0:
        return Row(ZERO, {name: [ZERO] * len(a) for name in names})
    slopes = zip(near[1], far[1], across[1], strict=True)
    each = [(one, share * other, (1 - share) * third) for one, other, third in slopes]
    parts = [[one - other, -one - third, other + third] for one, other, third in each]
    return Row(z, {name: [part[k] for part in parts] for k, name in enumerate(names)})


def cosine_embedding(row: dict[str, Any], parameters: dict[str, Any]) -> Row:
    """1 − cos of a target of 1, max(0, cos − m) of −1."""
    x, y = reals(row["input1"]), reals(row["input2"])
    target, margin, epsilon = float(row["target"]), real(parameters.get("margin", 0.0)), real(1e-12)
    squares = [gmpy2.fsum([a * a for a in v]) + epsilon for v in (x, y)]
    product = gmpy2.fsum([a * b for a, b in zip(x, y, strict=True)])
    size = gmpy2.sqrt(squares[0] * squares[1])
    cosine = product / size
    rest = cosine - margin
    if abs(target) != 1 or (target == -1 and rest < 0):
        return Row(ZERO, {name: [ZERO] * len(x) for name in ("input1", "input2")})
    turn = -mpfr(target)
    slopes = {
        name: [turn * (b - a * product / square) / size for a, b in zip(own, other, strict=True)]
        for name, own, other, square in (("input1", x, y, squares[0]), ("input2", y, x, squares[1]))
    }
    return Row(1 - cosine if target == 1 else rest, slopes)


DEFINITIONS: dict[str, Definition] = {
    "cosine_embedding": cosine_embedding,
    "multi_margin": multi_margin,
    "multilabel_margin": multilabel_margin,
    "triplet_margin": triplet_margin,
}


def compare(function: str, sample: Sample) -> Iterator[Comparison]:
    """A function of refloss against its definition."""
    with gmpy2.context(precision=EXACT):
        yield from _compare(function, sample)


def _rows(sample: Sample) -> Iterator[dict[str, Any]]:
    count = len(next(iter(sample.inputs.values())))
    for index in range(count):
        yield {name: array if name == "weight" else array[index] for name, array in sample.inputs.items()}


def _compare(function: str, sample: Sample) -> Iterator[Comparison]:
    rows = [DEFINITIONS[function](row, sample.parameters) for row in _rows(sample)]
    divisor = mpfr(len(rows)) if sample.reduction == "mean" else ONE
    each = reals(np.broadcast_to(sample.cotangent, len(rows)))
    slopes = {
        name: [c * slope / divisor for c, row in zip(each, rows, strict=True) for slope in row.slopes[name]]
        for name in rows[0].slopes
    }
    size = next(iter(sample.inputs.values())).shape[-1]

    def describe(index: int) -> str:
        row = list(_rows(sample))[index // size]
        told = {name: np.asarray(value).astype(float).tolist() for name, value in row.items()}
        return (
            f"{sample.parameters} {sample.reduction} {told}, grad_output {sample.cotangent!r}, element {index % size}"
        )

    options = {"reduction": sample.reduction, "grad_output": sample.cotangent}
    first = next(iter(slopes))
    for format_name, dtype in DTYPES.items():
        result = getattr(refloss, function)(**sample.inputs, **sample.parameters, **options, grad_dtype=dtype)
        for name, values in slopes.items():
            got = result.grads[name]
            if name == first or format_name == "float32":
                yield Comparison(name, got.dtype.name, got, exact(values, got.shape), describe)
    losses = [row.loss for row in rows]
    expected = losses if sample.reduction == "none" else [gmpy2.fsum(losses) / divisor]
    loss = np.asarray(result.loss)
    yield Comparison("loss", "float64", loss, exact(expected, loss.shape), lambda index: describe(size * index))


def _count(size: int, width: int, parts: int) -> int:
    return max(1, size // width // parts) | 1


class Margins:
    """The kinds of inputs of losses of margins between classes."""

    def __init__(self, draw: Callable[[np.random.Generator, np.ndarray, bool], Sample]) -> None:
        """Draw is a call for logits; whether with everything that may be left out."""
        self._draw = draw

    def kinds(self) -> dict[str, Draw]:
        """By name."""
        return {
            "ordinary": self.ordinary,
            "cotangents": self.cotangents,
            "kinks": self.kinks,
            "magnitudes": self.magnitudes,
            "formats": self.formats,
        }

    def ordinary(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        for width in (1, 2, 10, 150):
            x = generator.standard_normal((_count(size, width, 4), width)).astype(np.float32)
            yield self._draw(generator, x, False)._replace(reduction="mean")

    def cotangents(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        for reduction in ("sum", "mean", "none"):
            x = generator.standard_normal((_count(size, 11, 3), 11)).astype(np.float32)
            each = generator.choice(COTANGENTS, len(x))
            cotangent = each if reduction == "none" else float(each[0])
            yield self._draw(generator, x, True)._replace(cotangent=cotangent, reduction=reduction)

    def kinks(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        """Short numbers, whose margins are often 0, and numbers next to them."""
        for distance in (0.0, 2.0**-22, 2.0**-18):
            x = generator.integers(-3, 4, (_count(size, 9, 3), 9)) / 2
            x = x + distance * generator.integers(-1, 2, x.shape)
            yield self._draw(generator, x.astype(np.float32), False)._replace(cotangent=1 / 3)

    def magnitudes(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        for scale in (1e-30, 1e-8, 1e8, 1e30):
            x = generator.standard_normal((_count(size, 9, 4), 9)) * scale
            yield self._draw(generator, x.astype(np.float32), True)._replace(cotangent=-0.1)

    def formats(self, generator: np.random.Generator, size: int) -> Iterator[Sample]:
        for k, dtype in enumerate(FORMATS):
            x = generator.standard_normal((_count(size, 9, 4), 9)).astype(dtype)
            yield self._draw(generator, x, True)._replace(cotangent=COTANGENTS[k])


def _multi_margin(generator: np.random.Generator, x: np.ndarray, everything: bool) -> Sample:
    inputs: dict[str, np.ndarray] = {"input": x, "target": generator.integers(x.shape[1], size=len(x))}
    parameters: dict[str, Any] = {"p": int(generator.integers(1, 3))}
    if everything:
        inputs["weight"] = np.asarray(0.1 + 3 * generator.random(x.shape[1]))
        parameters["margin"] = (0.1, -0.5, 3.0)[generator.integers(3)]
    return Sample(inputs, parameters)


def _multilabel_margin(generator: np.random.Generator, x: np.ndarray, _: bool) -> Sample:
    target = generator.integers(x.shape[1], size=x.shape)
    ends = generator.integers(0, min(x.shape[1], 5), len(x))
    target[np.arange(len(x)), ends] = -1
    return Sample({"input": x, "target": target}, {})


_NORMS: tuple[dict[str, Any], ...] = (
    {},
    {"p": 1.0, "eps": 0.0},
    {"p": np.inf, "swap": True},
    {"swap": True, "eps": 0.0},
    {"p": 3.0, "swap": True},
    {"p": 1.25, "eps": 0.0},
)


def _triplets(generator: np.random.Generator, count: int, width: int, dtype: Any = np.float32) -> Sample:
    inputs = generator.standard_normal((3, count, width)).astype(dtype)
    return Sample(dict(zip(("anchor", "positive", "negative"), inputs, strict=True)), {})


def triplets_of_every_norm(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for k, options in enumerate(_NORMS):
        for width in (1, 2, 20):
            sample = _triplets(generator, _count(size, 3 * width, 18), width)
            yield sample._replace(parameters=options | {"margin": (1.0, 0.1)[k % 2]}, reduction="mean")


def triplets_with_cotangents(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for k, options in enumerate(_NORMS):
        sample = _triplets(generator, _count(size, 21, 6), 7)
        each = generator.choice(COTANGENTS, len(sample.inputs["anchor"]))
        reduction = ("sum", "mean", "none")[k % 3]
        cotangent = each if reduction == "none" else float(each[0])
        yield sample._replace(parameters=options, cotangent=cotangent, reduction=reduction)


def short_triplets(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    """Distances that are equal, 0, and on the margin."""
    for options in _NORMS:
        sample = _triplets(generator, _count(size, 6, 6), 2)
        inputs = {name: generator.integers(-3, 4, x.shape).astype(np.float32) for name, x in sample.inputs.items()}
        yield Sample(inputs, options | {"eps": 0.0, "margin": 1.0}, 1 / 3)


def parallel_triplets(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    """Positive and negative in one direction of the anchor, or nearly."""
    for k, options in enumerate(_NORMS):
        inputs = _triplets(generator, _count(size, 12, 6), 4).inputs
        inputs["anchor"] = np.zeros_like(inputs["anchor"]) if k % 2 else inputs["anchor"]
        away = inputs["positive"] - inputs["anchor"]
        moved = away * (1 + (2.0**-12, 2.0**-20, 0.0)[k % 3] * generator.integers(-2, 3, away.shape))
        inputs["negative"] = (inputs["anchor"] + generator.choice([0.5, 1.0, 1.3]) * moved).astype(np.float32)
        yield Sample(inputs, options, 0.7)


def triplets_on_the_margin(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    """The margin is what is left of both distances, up to a few units in its last place."""
    for _ in range(max(4, size // 300)):
        sample = _triplets(generator, 1, 5, np.float64)
        a, b, c = (x + k for k, x in enumerate(sample.inputs.values()))
        margin = float(np.linalg.norm(a - c) - np.linalg.norm(a - b))
        names = ("anchor", "positive", "negative")
        if margin > 0:
            yield Sample(dict(zip(names, (a, b, c), strict=True)), {"margin": margin * (1 + 2.0**-48), "eps": 0.0}, 0.7)


def triplet_magnitudes(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for k, scale in enumerate((1e-12, 1e-6, 1e8, 1e30)):
        inputs = _triplets(generator, _count(size, 15, 4), 5).inputs
        inputs = {name: (x * scale).astype(np.float32) for name, x in inputs.items()}
        yield Sample(inputs, _NORMS[k] | {"margin": scale}, -0.1)


def triplet_formats(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for k, dtype in enumerate(FORMATS):
        yield _triplets(generator, _count(size, 15, 4), 5, dtype)._replace(
            parameters=_NORMS[k], cotangent=COTANGENTS[k]
        )


TRIPLETS: dict[str, Draw] = {
    "ordinary": triplets_of_every_norm,
    "cotangents": triplets_with_cotangents,
    "short": short_triplets,
    "parallel": parallel_triplets,
    "on the margin": triplets_on_the_margin,
    "magnitudes": triplet_magnitudes,
    "formats": triplet_formats,
}


def _vectors(generator: np.random.Generator, count: int, width: int, dtype: Any = np.float32) -> Sample:
    x, y = generator.standard_normal((2, count, width))
    inputs = {"input1": x.astype(dtype), "input2": (y + 0.5 * x).astype(dtype)}
    return Sample(inputs | {"target": generator.choice([1, -1], count)}, {})


def any_vectors(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for width in (1, 2, 10, 150):
        sample = _vectors(generator, _count(size, 2 * width, 4), width)
        yield sample._replace(parameters={"margin": 0.3}, reduction="mean")


def vectors_with_cotangents(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for k, reduction in enumerate(("sum", "mean", "none")):
        sample = _vectors(generator, _count(size, 14, 3), 7)
        each = generator.choice(COTANGENTS, len(sample.inputs["target"]))
        cotangent = each if reduction == "none" else float(each[0])
        yield sample._replace(parameters={"margin": (0.0, 0.1, -1.0)[k]}, cotangent=cotangent, reduction=reduction)


def parallel_vectors(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    """Multiples, and what comes near to one, on either side."""
    for factor in (1.0, -1.0, 0.5, 0.3, 100.0):
        for distance in (0.0, 2.0**-23, 2.0**-16, 2.0**-8):
            inputs = _vectors(generator, _count(size, 8, 20), 4).inputs
            near = inputs["input1"] * (1 + distance * generator.integers(-2, 3, inputs["input1"].shape))
            inputs["input2"] = (factor * near).astype(np.float32)
            yield Sample(inputs, {"margin": (0.0, 1.0, -1.0)[generator.integers(3)]}, 0.7)


def short_vectors(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    """Orthogonal vectors, and vectors of zeros."""
    for cotangent in COTANGENTS:
        inputs = _vectors(generator, _count(size, 6, 5), 3).inputs
        short = {name: generator.integers(-2, 3, x.shape).astype(x.dtype) for name, x in inputs.items() if x.ndim > 1}
        yield Sample(inputs | short, {}, cotangent)


def vector_magnitudes(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for scale in (1e-38, 1e-12, 1e-6, 1e4, 1e8, 1e37):
        for distance in (1.0, 2.0**-20):
            inputs = _vectors(generator, _count(size, 10, 12), 5).inputs
            x, y = (inputs[name] for name in ("input1", "input2"))
            inputs["input1"] = (x * scale).astype(np.float32)
            inputs["input2"] = (x + distance * y).astype(np.float32)
            yield Sample(inputs, {}, -0.1)


def vector_formats(generator: np.random.Generator, size: int) -> Iterator[Sample]:
    for k, dtype in enumerate(FORMATS):
        yield _vectors(generator, _count(size, 10, 4), 5, dtype)._replace(cotangent=COTANGENTS[k])


COSINES: dict[str, Draw] = {
    "ordinary": any_vectors,
    "cotangents": vectors_with_cotangents,
    "parallel": parallel_vectors,
    "short": short_vectors,
    "magnitudes": vector_magnitudes,
    "formats": vector_formats,
}
KINDS: dict[str, dict[str, Draw]] = {
    "cosine_embedding": COSINES,
    "triplet_margin": TRIPLETS,
    "multi_margin": Margins(_multi_margin).kinds(),
    "multilabel_margin": Margins(_multilabel_margin).kinds(),
}
