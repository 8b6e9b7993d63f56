"""Log-probabilities and entropies of a linear layer's outputs, and the layers on which they are hard to round."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr import linear, log_probs
from tests.mpfr.definitions import ZERO
from tests.mpfr.linear import dot, logits_of
from tests.mpfr.log_probs import CHAINS, Named
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, reals


class Layer(NamedTuple):
    """A call: arrays in float64 that hold what is meant in the formats they are given in; logits of named are none."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    named: Named

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """By their names."""
        given = {"input": self.x, "linear_weight": self.w}
        return given if self.bias is None else given | {"linear_bias": self.bias}


class Truth(NamedTuple):
    log_probs: list[Real]
    entropy: list[Real]
    grads: dict[str, list[Real]]


Draw = Callable[[np.random.Generator, int], Iterator[Layer]]


def truth(layer: Layer) -> Truth:
    """The definition."""
    rows, classes = [reals(row) for row in layer.x], [reals(row) for row in layer.w]
    bias = [ZERO] * len(classes) if layer.bias is None else reals(layer.bias)
    found = [log_probs.of_row(logits_of(row, classes, bias), layer.named, k) for k, row in enumerate(rows)]
    columns = [*zip(*(each.gradient for each in found), strict=True)]
    grads = {
        "input": [dot(each.gradient, w) for each in found for w in zip(*classes, strict=True)],
        "linear_weight": [dot(g, x) for g in columns for x in zip(*rows, strict=True)],
        "linear_bias": [gmpy2.fsum([*g]) for g in columns],
    }
    return Truth([p for each in found for p in each.log_probs], [h for each in found for h in each.entropy], grads)


def compare(layer: Layer) -> Iterator[Comparison]:
    """refloss's, in the formats that hold the layer's numbers."""
    named = layer.named

    def describe(index: int) -> str:
        return f"element {index} of {layer.x.shape}, {layer.w.shape}, {named.classes.shape[1]} a row, {named.options}"

    with gmpy2.context(precision=PRECISION):
        found = truth(layer)
        for format_name, dtype in DTYPES.items():
            with np.errstate(over="ignore"):
                inputs: dict[str, Any] = {name: value.astype(dtype) for name, value in layer.inputs.items()}
            if not all(np.array_equal(inputs[name].astype(np.float64), value) for name, value in layer.inputs.items()):
                continue
            upstream = {"log_probs": named.of_log_probs, "entropy": named.of_entropy}
            result = refloss.linear_selected_log_probs(
                **inputs, index=named.classes, grad_output=upstream, **named.options
            )
            for name, value in inputs.items():
                expected = exact(found.grads[name], value.shape)
                yield Comparison(name, format_name, result.grads[name], expected, describe)
            log_probs, entropy = np.asarray(result.loss), np.asarray(result.components["entropy"])
            yield Comparison("loss", "float64", log_probs, exact(found.log_probs, log_probs.shape), describe)
            yield Comparison("loss", "float64", entropy, exact(found.entropy, entropy.shape), describe)


def _of_labels(draw: linear.Draw, generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """The layers of a cross-entropy, with their labels for indices."""
    for layer in draw(generator, size):
        index = np.maximum(layer.target, 0)[:, None]
        yield Layer(layer.x, layer.w, layer.bias, log_probs.named_rows(generator, layer.x, index))


def several(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """Three classes a row, some of them twice."""
    for x, w, labels in linear.layers(generator, size, np.float32):
        index = generator.integers(len(w), size=(len(x), 3))
        index[::2, 1], index[:, 2] = index[::2, 0], np.maximum(labels, 0)
        yield Layer(x, w, None, log_probs.named_rows(generator, x, index))


def options(generator: np.random.Generator, size: int) -> Iterator[Layer]:
    """A chain."""
    for k, (x, w, labels) in enumerate(linear.layers(generator, size, ml_dtypes.bfloat16)):
        index, bias = np.maximum(labels, 0)[:, None], generator.integers(-9, 9, len(w)) / 4.0
        yield Layer(x, w, bias, log_probs.named_rows(generator, x, index, **CHAINS[k % len(CHAINS)]))


# Kinds of layers that only a cross-entropy has, or that are here in another way.
_OTHERS = ("options", "places")
KINDS: dict[str, Draw] = {
    **{kind: functools.partial(_of_labels, draw) for kind, draw in linear.KINDS.items() if kind not in _OTHERS},
    "several": several,
    "options": options,
}
