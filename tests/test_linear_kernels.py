"""What kernels of linear cross-entropy do: honest ones pass the judge, and each mistake of known libraries fails.

The kernel is a few lines of NumPy in float32, by chunks of rows as libraries have it; a mistake replaces a step of it.
"""

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from refloss.golden.corpus import cases_of
from refloss.testing.judging import judge

OPTIONS = {"reduction", "ignore_index", "label_smoothing", "logits_dtype"}
CASES = [
    case
    for case in cases_of("linear_cross_entropy")
    if case.parameters.keys() <= OPTIONS and case.inputs["input"].ndim == 2 and case.inputs["target"].ndim == 1
]


class Kernel(NamedTuple):
    """Its steps."""

    chunks: int = 1
    weights: Any = lambda w: w
    bias: Any = lambda b: b
    cotangent: Any = lambda c: c
    of_logits: Any = lambda g: g
    divisor: Any = lambda whole, chunk, chunks: whole
    accumulator: Any = np.float32


def logits_of(kernel, case, x):
    z = x @ kernel.weights(case.inputs["linear_weight"].astype(np.float32)).T
    if "linear_bias" in case.inputs:
        z = z + kernel.bias(case.inputs["linear_bias"].astype(np.float32))
    dtype = case.parameters.get("logits_dtype")
    # What a 16-bit type is computed in, it is between operations as well.
    dtype = dtype or (case.inputs["input"].dtype if case.inputs["input"].dtype.itemsize == 2 else None)
    return z if dtype is None else z.astype(dtype).astype(np.float32)


def rows_of(kernel, case, rows, weight):
    """Losses of some rows, and the gradients of their logits before cotangent and divisor."""
    z = logits_of(kernel, case, case.inputs["input"][rows].astype(np.float32))
    labels, smoothing = case.inputs["target"][rows], np.float32(case.parameters.get("label_smoothing", 0.0))
    counted = labels != case.parameters.get("ignore_index", -100)
    z = z - z.max(axis=1, keepdims=True)
    total = np.exp(z).sum(axis=1, keepdims=True)
    classes = np.arange(z.shape[1], dtype=np.int64)
    mass = weight * ((1 - smoothing) * (labels[:, None] == classes) + smoothing / np.float32(z.shape[1]))
    mass = np.where(counted[:, None], mass, 0).astype(np.float32)
    losses = (mass * (np.log(total) - z)).sum(axis=1)
    return (
        losses,
        mass.sum(axis=1, keepdims=True) * np.exp(z) / total - mass,
        np.where(counted, weight[np.maximum(labels, 0)], 0),
    )


def answer(kernel, case):
    x, w = (case.inputs[name].astype(np.float32) for name in ("input", "linear_weight"))
    weight = case.inputs.get("weight", np.ones(len(w))).astype(np.float32)
    parts = np.array_split(np.arange(len(x)), min(kernel.chunks, len(x)))
    found = [rows_of(kernel, case, rows, weight) for rows in parts]
    whole = sum(counts.sum() for _, _, counts in found)
    reduction = case.parameters.get("reduction", "mean")
    upstream = kernel.cotangent(np.broadcast_to(np.asarray(case.grad_output, np.float32), len(x)))
    of_weight = np.zeros(w.shape, kernel.accumulator)
    of_bias = np.zeros(len(w), np.float32)
    losses, of_input = [], []
    for rows, (loss, g, counts) in zip(parts, found, strict=True):
        divisor = kernel.divisor(whole, counts.sum(), len(parts)) if reduction == "mean" else np.float32(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            g = np.where((counts == 0)[:, None], 0, kernel.of_logits(upstream[rows, None] * g / divisor))  # noqa: PLW2901
            losses.append(loss / divisor)
        g = g.astype(case.inputs["input"].dtype).astype(np.float32)  # noqa: PLW2901
        of_input.append(g @ kernel.weights(w))
        of_weight = (of_weight.astype(np.float32) + g.T @ x[rows]).astype(kernel.accumulator)
        of_bias += g.sum(axis=0)
    loss = np.concatenate(losses)
    grads = {"input": np.concatenate(of_input), "linear_weight": of_weight, "linear_bias": of_bias}
    return {
        "loss": np.asarray(loss if reduction == "none" else loss.sum() if len(loss) else np.float32(np.nan)),
        **{f"grad.{name}": grads[name].astype(case.inputs[name].dtype) for name in grads if name in case.inputs},
    }


def failing(kernel):
    """The cases that fail, with the tensors that do; each computed in its own type."""
    found = {}
    for case in CASES:
        dtype = case.inputs["input"].dtype.name
        if dtype == "float64":
            continue
        judged = judge.judge(judge.question(case, dtype), answer(kernel, case))
        wrong = {tensor.name for tensor in judged.tensors if tensor.passed is False}
        if wrong:
            found[case.id.removeprefix("linear_cross_entropy-")] = wrong
    return found


@pytest.fixture(autouse=True)
def _without_explanations(monkeypatch):
    monkeypatch.setattr(judge, "_causes", lambda asked, tensors, candidate: ())


@pytest.mark.parametrize("chunks", [1, 3, 64])
def test_honest_kernels_pass(chunks):
    assert failing(Kernel(chunks)) == {}


def _first(cotangents):
    return np.full_like(cotangents, cotangents[0])


def _filtered(g):
    return np.where(np.abs(g) < 2.0**-8 * np.abs(g).max(initial=0), 0, g)


MISTAKES = {
    "weights of the classes in another order": (Kernel(weights=lambda w: w[::-1]), "sum", "grad.input"),
    "bias forgotten": (Kernel(bias=lambda b: 0 * b), "float32-mean", "grad.linear_weight"),
    "first cotangent for all rows": (Kernel(cotangent=_first), "many-none", "grad.linear_weight"),
    "small gradients left out": (Kernel(of_logits=_filtered), "many-none", "grad.input"),
    "mean of the means of chunks": (
        Kernel(3, divisor=lambda whole, chunk, chunks: chunk * chunks), "weighted-smoothed", "grad.linear_weight"
    ),
    "gradients summed in bfloat16": (Kernel(64, accumulator=ml_dtypes.bfloat16), "many-none", "grad.linear_weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_fails(name):
    """Liger-Kernel#968, ml-cross-entropy#14 and Liger-Kernel#1391 among them."""
    kernel, case, tensor = MISTAKES[name]
    assert tensor in failing(kernel)[case]
