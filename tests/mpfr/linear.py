"""Cross-entropies of a linear layer's outputs, and the layers on which they are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO, Softmax, smoothed
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals
from tests.mpfr.rows import chained

PLAIN: Mapping[str, Any] = MappingProxyType({})


class Layer(NamedTuple):
    """A call: arrays in float64 that hold what is meant in the formats they are given in.

    With places, w is [V, places, K], and bias, target and cotangent have an axis of them.
    """

    x: np.ndarray
    w: np.ndarray
    target: np.ndarray
    cotangent: Any = 1.0
    reduction: Any = "sum"
    bias: np.ndarray | None = None
    weight: np.ndarray | None = None
    options: Mapping[str, Any] = PLAIN


class Truth(NamedTuple):
    losses: list[Real]
    loss: Real
    grads: dict[str, list[Real]]


Draw = Callable[[np.random.Generator, int], Iterator[Layer]]


def _of_row(layer: Layer, z: list[Real], target: Any, c: Real) -> tuple[Real, list[Real]]:
    """A row's loss, and the gradient of its logits."""
    y, slopes = chained(z, layer.options)
    softmax, factor = Softmax(y), real(layer.options.get("z_loss", 0.0))
    smoothing = real(layer.options.get("label_smoothing", 0.0))
    weight = None if layer.weight is None else reals(layer.weight)
    t = reals(target) if np.ndim(target) else [ONE if j == target else ZERO for j in range(len(z))]
    if np.ndim(target) or smoothing or weight is not None:
        loss, of_y = softmax.of_distribution(smoothed(t, weight, smoothing))
    else:
        loss, of_y = softmax.of_label(int(target))
    square = 2 * factor * softmax.lse() / softmax.total
    of_z = [c * (g + square * e) * s for g, e, s in zip(of_y, softmax.terms, slopes, strict=True)]
    return loss + factor * softmax.lse() ** 2, of_z


def truth(layer: Layer) -> Truth:
    """The definition; a label of −100 does not count."""
    rows, soft = [reals(row) for row in layer.x], layer.target.ndim == 2
    classes = [reals(row) for row in layer.w]
    bias = [ZERO] * len(classes) if layer.bias is None else reals(layer.bias)
    counted = [soft or label >= 0 for label in layer.target]
    divisor = ONE
    if layer.reduction == "mean":
        weights = [ONE] * len(classes) if layer.weight is None or soft else reals(layer.weight)
        divisor = sum((ONE if soft else weights[t] for t, c in zip(layer.target, counted, strict=True) if c), ZERO)
    losses, of_logits = [], []
    for row, target, counts, c in zip(
        rows, layer.target, counted, np.broadcast_to(layer.cotangent, len(rows)), strict=True
    ):
        z = logits_of(row, classes, bias)
        none = ZERO, [ZERO] * len(z)
        loss, gradient = _of_row(layer, z, target, real(c) / divisor) if counts else none
        losses.append(loss)
        of_logits.append(gradient)
    columns = [*zip(*of_logits, strict=True)]
    grads = {
        "input": [dot(g, w) for g in of_logits for w in zip(*classes, strict=True)],
        "linear_weight": [dot(g, x) for g in columns for x in zip(*rows, strict=True)],
        "linear_bias": [gmpy2.fsum([*g]) for g in columns],
    }
    return Truth(losses, gmpy2.fsum(losses) / divisor, grads)


def _of_places(layer: Layer) -> Truth:
    """Each place is a layer of its own, but for the input, which they share."""
    cotangent = np.broadcast_to(layer.cotangent, layer.target.shape)
    parts = [
        truth(
            layer._replace(
                w=layer.w[:, p],
                target=layer.target[:, p],
                cotangent=cotangent[:, p],
                bias=None if layer.bias is None else layer.bias[:, p],
            )
        )
        for p in range(layer.w.shape[1])
    ]
    count, (classes, _, features) = len(layer.x), layer.w.shape
    grads = [part.grads for part in parts]
    return Truth(
        [part.losses[i] for i in range(count) for part in parts],
        gmpy2.fsum([part.loss for part in parts]),
        {
            "input": [gmpy2.fsum([*each]) for each in zip(*(g["input"] for g in grads), strict=True)],
            "linear_weight": [
                value
                for v in range(classes)
                for g in grads
                for value in g["linear_weight"][v * features : (v + 1) * features]
            ],
            "linear_bias": [g["linear_bias"][v] for v in range(classes) for g in grads],
        },
    )


def logits_of(row: list[Real], classes: list[list[Real]], bias: list[Real]) -> list[Real]:
    """A layer's outputs for one row."""
    return [dot(row, w) + b for w, b in zip(classes, bias, strict=True)]


def dot(a: Any, b: Any) -> Real:
    """Σ a·b."""
    return gmpy2.fsum([x * y for x, y in zip(a, b, strict=True)])


def linear_cross_entropy(layer: Layer) -> Iterator[Comparison]:
    """refloss.linear_cross_entropy, in the formats that hold its numbers."""
    with gmpy2.context(precision=PRECISION):
        found = truth(layer) if layer.w.ndim == 2 else _of_places(layer)
        for format_name, dtype in DTYPES.items():
            held = {"input": layer.x, "linear_weight": layer.w}
            held |= {} if layer.bias is None else {"linear_bias": layer.bias}
            with np.errstate(over="ignore"):
                inputs: dict[str, Any] = {name: value.astype(dtype) for name, value in held.items()}
            if not all(np.array_equal(inputs[name].astype(np.float64), value) for name, value in held.items()):
                continue
            options = dict(layer.options) | ({} if layer.weight is None else {"weight": layer.weight})
            result = refloss.linear_cross_entropy(
                **inputs, target=layer.target, reduction=layer.reduction, grad_output=layer.cotangent, **options
            )

            def describe(index: int) -> str:
                return f"element {index} of {layer.x.shape}, {layer.w.shape}, {layer.reduction}, {layer.options}"

            for name, value in inputs.items():
                expected = exact(found.grads[name], value.shape)
                yield Comparison(name, format_name, result.grads[name], expected, describe)
            loss = np.asarray(result.loss)
            expected = exact(found.losses if layer.reduction == "none" else [found.loss], loss.shape)
            yield Comparison("loss", "float64", loss, expected, describe)


_SHAPES = ((5, 8, 11), (3, 20, 7), (9, 3, 30), (1, 12, 2))


def layers(generator: np.random.Generator, size: int, dtype: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """Numbers of a format, and labels, some of which do not count."""
    done = 0
    while done < size:
        for rows, features, classes in _SHAPES:
            x = generator.standard_normal((rows, features)).astype(dtype).astype(np.float64)
            w = generator.standard_normal((classes, features)).astype(dtype).astype(np.float64)
            labels = np.where(generator.random(rows) < 0.2, -100, generator.integers(0, classes, rows))
            labels[0] = generator.integers(classes)
            done += x.size + w.size
            yield x, w, labels


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """As one would test it, in 16 bits."""
    for k, (x, w, labels) in enumerate(layers(generator, size, ml_dtypes.bfloat16)):
        bias = generator.integers(-9, 9, len(w)) / 4.0
        yield Layer(x, w, labels, COTANGENTS[k % len(COTANGENTS)], ("mean", "sum")[k % 2], bias if k % 3 else None)


def single(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Numbers of float32, with a cotangent for each row."""
    for x, w, labels in layers(generator, size, np.float32):
        yield Layer(x, w, labels, generator.standard_normal(len(x)), "none")


def double(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Numbers of float64."""
    for x, w, labels in layers(generator, size, np.float64):
        yield Layer(x, w, labels, 1 / 3, "mean")


def sure(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Rows that point where their label's weights do: gradients of all sizes."""
    for k, (x, w, labels) in enumerate(layers(generator, size, ml_dtypes.bfloat16)):
        yield Layer(
            (x + 2.0 ** (k % 4) * w[np.maximum(labels, 0)]).astype(np.float32).astype(np.float64), w, labels, 1e3
        )


def wide(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Features of any size, which meet weights that make up for it."""
    for x, w, labels in layers(generator, size, np.float32):
        scales = 2.0 ** generator.integers(-40, 40, x.shape[1])
        yield Layer(x * scales, w / scales, labels, 0.3)


def alike(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Classes whose weights are the same but for one feature: what cancels in the gradient of the input."""
    for k, (x, w, labels) in enumerate(layers(generator, size, np.float32)):
        w[:, :-1] = w[0, :-1]
        w[:, -1] *= 2.0 ** -(k % 12)
        yield Layer(x, w.astype(np.float32).astype(np.float64), labels, -7.0, "mean")


_OPTIONS: tuple[Mapping[str, Any], ...] = (
    {"label_smoothing": 0.1},
    {"softcap": 5.0, "logit_scale": 0.5},
    {"temperature": 0.7, "z_loss": 1e-2},
    {"logit_scale": 1.7, "softcap": 2.0, "temperature": 3.0, "z_loss": 0.5, "label_smoothing": 0.3},
)


def options(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Weights, smoothing, a chain, a z-loss; labels and distributions."""
    for k, (x, w, labels) in enumerate(layers(generator, size, ml_dtypes.bfloat16)):
        target = labels
        if k % 2:
            target = generator.random((len(x), len(w))) + 0.01
            target /= target.sum(axis=1, keepdims=True)
        yield Layer(
            x, w, target, -1.7, ("mean", "sum")[k // 2 % 2], None, generator.random(len(w)) + 0.25, _OPTIONS[k % 4]
        )


def placed(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Outputs of places, each with labels and weights of its own."""
    for k, layers_of in enumerate(zip(*(layers(generator, size // 3, np.float32) for _ in range(3)), strict=False)):
        w, labels = (np.stack(each, axis=1) for each in zip(*(each[1:] for each in layers_of), strict=True))
        bias = generator.integers(-9, 9, w.shape[:2]) / 4.0
        reduction = ("sum", "none")[k % 2]
        cotangent = generator.standard_normal(labels.shape) if k % 2 else 1 / 3
        yield Layer(layers_of[0][0], w, labels, cotangent, reduction, bias, generator.random(len(w)) + 0.25)


KINDS: dict[str, Draw] = {
    "bfloat16": ordinary,
    "float32": single,
    "float64": double,
    "sure": sure,
    "features of any size": wide,
    "classes alike": alike,
    "options": options,
    "places": placed,
}
