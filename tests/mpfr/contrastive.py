"""Losses of a matrix of similarities, and the inputs on which they are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO, Softmax, smoothed, soft_margin
from tests.mpfr.elements import COTANGENTS, DISTANCES, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

WIDTHS = (2, 3, 10, 31)


class Pairs(NamedTuple):
    """A call: similarities [N, N], what goes with them, and what is computed of them."""

    similarity: np.ndarray
    cotangent: Any = 1.0
    reduction: str = "sum"
    parameters: dict[str, Any] = {}  # noqa: RUF012


Draw = Callable[[np.random.Generator, int], Iterator[Pairs]]
Truth = Callable[[Pairs, list[Real]], tuple[list[Real], list[Real]]]


def of_pairs(call: Callable[..., Any], name: str, truth: Truth, pairs: Pairs) -> Iterator[Comparison]:
    """A call's gradient in every format, and its loss, against the definition of losses and gradients."""
    with gmpy2.context(precision=PRECISION):
        count = len(pairs.similarity)
        divisor = real(count) if pairs.reduction == "mean" else ONE
        each = [c / divisor for c in reals(np.broadcast_to(pairs.cotangent, count))]
        losses, gradient = truth(pairs, each)

        def describe(index: int) -> str:
            i, j = divmod(index, pairs.similarity.shape[1])
            values = pairs.similarity.astype(float).tolist() if count <= 3 else float(pairs.similarity[i, j])
            upstream = float(np.broadcast_to(pairs.cotangent, count)[i])
            of = f"{pairs.similarity.dtype} {pairs.reduction} [{i}, {j}] of {pairs.similarity.shape}"
            return f"{of}: {values}, grad_output {upstream!r}, {pairs.parameters}"

        for format_name, dtype in DTYPES.items():
            result = call(
                pairs.similarity,
                reduction=pairs.reduction,
                grad_output=pairs.cotangent,
                grad_dtype=dtype,
                **pairs.parameters,
            )
            yield Comparison(name, format_name, result.grads[name], exact(gradient, pairs.similarity.shape), describe)
        loss = np.asarray(result.loss)
        expected = losses if pairs.reduction == "none" else [gmpy2.fsum(losses) / divisor]
        yield Comparison("loss", "float64", loss, exact(expected, loss.shape), lambda index: describe(index * count))


def _sigmoid(pairs: Pairs, each: list[Real]) -> tuple[list[Real], list[Real]]:
    count, values = len(pairs.similarity), reals(pairs.similarity)
    found = [soft_margin(value, real(1 if k % (count + 1) == 0 else -1)) for k, value in enumerate(values)]
    losses = [gmpy2.fsum([value for value, _, _ in found[i * count : (i + 1) * count]]) for i in range(count)]
    return losses, [each[k // count] * slope for k, (_, slope, _) in enumerate(found)]


def sigmoid_contrastive(pairs: Pairs) -> Iterator[Comparison]:
    """refloss.sigmoid_contrastive."""
    yield from of_pairs(refloss.sigmoid_contrastive, "logits", _sigmoid, pairs)


def _of_lines(lines: list[list[Real]], smoothing: Real) -> tuple[list[Real], list[list[Real]]]:
    """The cross-entropies of rows whose labels are on the diagonal, and their gradients."""
    losses, slopes = [], []
    for i, line in enumerate(lines):
        softmax = Softmax(line)
        if smoothing:
            q = smoothed([ONE if j == i else ZERO for j in range(len(line))], None, smoothing)
            loss, slope = softmax.of_distribution(q)
        else:
            loss, slope = softmax.of_label(i)
        losses.append(loss)
        slopes.append(slope)
    return losses, slopes


def _info_nce(pairs: Pairs, each: list[Real]) -> tuple[list[Real], list[Real]]:
    values, smoothing = pairs.similarity, real(pairs.parameters.get("label_smoothing", 0.0))
    losses, slopes = _of_lines([reals(row) for row in values], smoothing)
    if not pairs.parameters.get("symmetric", True):
        return losses, [c * slope for c, row in zip(each, slopes, strict=True) for slope in row]
    others, columns = _of_lines([reals(column) for column in values.T], smoothing)
    gradient = [
        (each[i] * slopes[i][j] + each[j] * columns[j][i]) / 2 for i in range(len(values)) for j in range(len(values))
    ]
    return [(a + b) / 2 for a, b in zip(losses, others, strict=True)], gradient


def info_nce(pairs: Pairs) -> Iterator[Comparison]:
    """refloss.info_nce."""
    yield from of_pairs(refloss.info_nce, "similarity", _info_nce, pairs)


def _widths(size: int) -> Iterator[int]:
    """Matrices of so many elements in all."""
    while size > 0:
        for width in WIDTHS:
            yield width
            size -= width * width


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """As one would test it."""
    for width in _widths(size):
        yield Pairs((generator.standard_normal((width, width)) * 4).astype(np.float32), reduction="mean")


def cotangents(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """Numbers without end in binary."""
    for k, width in enumerate(_widths(size)):
        x = (generator.standard_normal((width, width)) * 3).astype(INPUT_DTYPES[k % 4])
        yield Pairs(x, COTANGENTS[k % 5], ("mean", "sum")[k % 2])


def short_numbers(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """Numbers with few bits, many of them equal."""
    for k, width in enumerate(_widths(size)):
        x = np.round(generator.standard_normal((width, width)) * (0.0, 1.0, 4.0)[k % 3]) / 2
        yield Pairs(x.astype(ml_dtypes.bfloat16), (*COTANGENTS, 3.0, 1.0)[k % 7], ("mean", "sum")[k % 2])


def none(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """A cotangent for every pair."""
    for width in _widths(size):
        cotangent = generator.choice(np.array([*COTANGENTS, 1.0, -2.0, 0.3]), width)
        yield Pairs((generator.standard_normal((width, width)) * 3).astype(np.float32), cotangent, "none")


def sure(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """Pairs that are told apart, by far and by very far."""
    for k, width in enumerate(_widths(size)):
        x = generator.standard_normal((width, width)) + np.eye(width) * (5.0, 20.0, 60.0, 300.0)[k % 4]
        yield Pairs((x - (0.0, 10.0)[k % 2]).astype(np.float32), COTANGENTS[k % 5], ("mean", "sum")[k % 2])


def magnitudes(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """Tiny and large similarities and cotangents, subnormal results among them."""
    for k, width in enumerate(_widths(size)):
        low, high, cotangent = ((-44, -20, 1e-3), (-30, 0, 1e-38), (-3, 2.5, 1e-30), (1, 2.2, 1 / 3))[k % 4]
        x = generator.standard_normal((width, width)) * 10.0 ** generator.uniform(low, high, (width, width))
        yield Pairs(x.astype((np.float32, np.float64)[k % 2]), cotangent)


KINDS: dict[str, Draw] = {
    "ordinary": ordinary,
    "cotangents": cotangents,
    "short numbers": short_numbers,
    "none": none,
    "sure": sure,
    "magnitudes": magnitudes,
}


def smoothings(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """Smoothed pairs, rows alone, and more negatives than pairs."""
    for k, width in enumerate(_widths(size)):
        parameters = {"label_smoothing": (0.1, 0.3, 1.0, 0.0)[k % 4], "symmetric": k % 3 > 0}
        x = generator.standard_normal((width, width + (5 if k % 6 == 0 else 0))) * (1.0, 4.0)[k % 2]
        yield Pairs(x.astype(np.float32), COTANGENTS[k % 5], ("mean", "sum")[k % 2], parameters)


def learnt(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """Probabilities at and next to the masses of smoothed pairs."""
    for k, width in enumerate(_widths(size)):
        smoothing = (0.1, 0.5, 0.9)[k % 3]
        gap = np.log((1 - smoothing + smoothing / width) / (smoothing / width))
        distance = generator.choice(np.array([0.0, *DISTANCES]), (width, width)) * generator.standard_normal(
            (width, width)
        )
        x = np.eye(width) * gap + (0.0, 1.0)[k % 2] * distance
        yield Pairs(
            x.astype((np.float32, np.float64)[k % 2]), COTANGENTS[k % 5], "mean", {"label_smoothing": smoothing}
        )


def opposed(generator: np.random.Generator, size: int) -> Iterator[Pairs]:
    """Cotangents of both signs, and matrices that are nearly their own transposes."""
    for k, width in enumerate(_widths(size)):
        x = generator.standard_normal((width, width)) * 2
        x = np.round((x + x.T) * 64) / 64 + (0.0, 2.0**-16)[k % 2] * generator.standard_normal((width, width))
        cotangent = COTANGENTS[k % 5] * (-1.0) ** np.arange(width)
        yield Pairs(x.astype(np.float32), cotangent, "none")


INFO_NCE: dict[str, Draw] = KINDS | {"smoothings": smoothings, "learnt": learnt, "opposed": opposed}
