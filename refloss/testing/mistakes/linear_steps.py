"""Mistakes with a linear layer whose outputs are logits: in its sums, and every one that rows of logits can have.

What a mistake makes of the gradients g of logits, the layer's products make of those: g·W, gᵀ·X and Σ g.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss.cases.source import DTYPES
from refloss.golden.store import evaluate
from refloss.roundoff import real
from refloss.testing.mistakes.guess import POSSIBLE, USUAL, Guess
from refloss.testing.mistakes.outcome import Tensors, Wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from refloss.testing.mistakes.outcome import Steps
    from refloss.testing.mistakes.rows import View
    from refloss.testing.verdict import Question

OF_LOGITS = {"linear_cross_entropy": "cross_entropy", "linear_selected_log_probs": "selected_log_probs"}
FILTERED = "small gradients of logits are left out"
IN_16_BITS = "gradients of parameters are added up in 16 bits, part by part"
THRESHOLDS = tuple(2.0**-power for power in range(4, 25))
_KINDS = (ml_dtypes.bfloat16, np.float16)
_LOGITS, _GIVEN = "grad.logits", ("input", "linear_weight", "linear_bias")


class Layer(NamedTuple):
    """A layer's numbers, and what is asked of its outputs as if they were logits that are given."""

    asked: Question
    given: Mapping[str, np.ndarray]  # input, linear_weight, and linear_bias if there is one
    x: np.ndarray  # [N, K]
    w: np.ndarray  # [V, K], with places [V·places, K]

    def products(self, g: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
        """The gradients of the layer, of those of its outputs."""
        g = g.reshape(len(self.x), len(self.w))
        # What a row without a gradient holds concerns no sum.
        x = np.where((g != 0).any(axis=1, keepdims=True), self.x, 0.0)
        return {
            "input": lambda: g @ self.w,
            "linear_weight": lambda: g.T @ x,
            "linear_bias": lambda: g.sum(axis=0),
        }


def layer_of(asked: Question) -> Layer | None:
    """That of a case; None where there is none."""
    case = asked.case
    if case.function not in OF_LOGITS:
        return None
    (*rows, features), outputs = case.inputs["input"].shape, case.inputs["linear_weight"].shape[:-1]
    x = real(case.inputs["input"]).reshape(math.prod(rows), features)
    w = real(case.inputs["linear_weight"]).reshape(math.prod(outputs), features)
    z = x @ w.T + real(case.inputs.get("linear_bias", np.zeros(1))).reshape(-1)
    dtype = case.parameters.get("logits_dtype")
    z = z if dtype is None else real(z.astype(DTYPES[dtype]))
    parameters = {name: value for name, value in case.parameters.items() if name != "logits_dtype"}
    own = {name: case.inputs[name] for name in _GIVEN if name in case.inputs}
    others = {name: value for name, value in case.inputs.items() if name not in own}
    inputs = {"logits": z.reshape(*rows, *outputs), **others}
    of_logits = case._replace(function=OF_LOGITS[case.function], inputs=inputs, parameters=parameters)
    return Layer(asked._replace(case=of_logits), own, x, w)


def computed_alike(layer: Layer, every: list[View]) -> list[View]:
    """Rows of its outputs, which are computed in the type that the layer is."""
    return [dataclasses.replace(view, inputs={**view.inputs, "logits": layer.given["input"]}) for view in every]


def back(layer: Layer, guess: Guess) -> Guess:
    """The same of the layer's own gradients."""
    of_sizes = layer._replace(x=np.abs(layer.x), w=np.abs(layer.w))
    return guess._replace(
        tensors=_through(layer, guess.tensors), magnitudes=_through(of_sizes, guess.magnitudes), glance=None
    )


def _through(layer: Layer, tensors: Mapping[str, np.ndarray]) -> Tensors:
    makers: dict[str, Callable[[], np.ndarray]] = {
        name: functools.partial(tensors.__getitem__, name) for name in tensors if name != _LOGITS
    }
    if _LOGITS in tensors:
        products = functools.cache(lambda: layer.products(tensors[_LOGITS]))
        makers |= {
            f"grad.{name}": lambda name=name, shape=value.shape: products()[name]().reshape(shape)  # type: ignore[misc]
            for name, value in layer.given.items()
        }
    return Tensors(makers)


def filtered(view: View) -> Iterator[Wrong]:
    """Elements of p − q below a threshold are not worth a product."""
    sizes = np.abs(view.slopes[view.slopes != 0])
    known = 0
    for threshold in reversed(THRESHOLDS):
        below = int((sizes < threshold).sum())
        if below > known:
            yield Wrong(slopes=np.where(np.abs(view.slopes) < threshold, 0.0, view.slopes))
        known = below


def in_16_bits(layer: Layer) -> Iterator[Guess]:
    """Of parts of so many rows each; in 16 bits two computations that hardly differ may round apart."""
    count = len(layer.x)
    g = functools.cache(lambda: real(evaluate(layer.asked.case).grads["logits"]))
    for kind in _KINDS:
        for power in range(max(count - 1, 0).bit_length()):
            parts = [slice(first, first + 2**power) for first in range(0, count, 2**power)]
            tensors = functools.cache(functools.partial(_added, layer, g, parts, kind))
            made, limits = (_parts_of(tensors, layer, part) for part in (0, 1))
            yield Guess(IN_16_BITS, USUAL, made, is_certain=False)
            yield Guess(IN_16_BITS, POSSIBLE, made, limits, is_certain=False)


def _parts_of(tensors: Callable[[], Mapping[str, tuple[np.ndarray, ...]]], layer: Layer, part: int) -> Tensors:
    """The gradients of parameters, or how far they may be off."""

    def maker(name: str) -> Callable[[], np.ndarray]:
        return lambda: tensors()[name][part]

    return Tensors({f"grad.{name}": maker(name) for name in layer.given if name != "input"})


def _added(
    layer: Layer, g: Callable[[], np.ndarray], parts: list[slice], kind: Any
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sums that are rounded after each part, and an ulp of the largest on the way."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    rows = g().reshape(len(layer.x), len(layer.w))
    for name in ("linear_weight", "linear_bias"):
        total = largest = np.zeros(layer.w.shape if name == "linear_weight" else len(layer.w))
        for part in parts:
            of_part = layer._replace(x=layer.x[part]).products(rows[part])[name]()
            total = real((total + of_part).astype(kind))
            largest = np.maximum(largest, np.abs(total))
        if name in layer.given:
            shape, unit = layer.given[name].shape, float(ml_dtypes.finfo(kind).eps)  # type: ignore[no-untyped-call]
            found[name] = total.reshape(shape), largest.reshape(shape) * unit
    return found


STEPS: Steps = {FILTERED: (POSSIBLE, filtered)}
# What shows with some of their numbers alone.
OF_SOME_NUMBER = (filtered,)
