"""Losses of a linear layer, values and gradients: beside three float64 products in NumPy, and torch's in float64.

Inputs are bfloat16, and float64 copies of them for the others. Run as `python -m benchmarks.linear [--write]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

import refloss
from benchmarks.measure import Timing, in_fresh_process, interleaved, machine, peak_memory
from benchmarks.report import Aim, Table, console, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable

COLUMNS = ("N × K × V", "implementation", "s", "quartiles apart", "time / products", "aim", "holds", "peak, MB")
REFLOSS, PRODUCTS, TORCH = "refloss", "NumPy's three products", "torch, float64"
LOG_PROBS = "refloss, log-probabilities and entropies"
AIM = 8.0
ROUNDS = 3
TOLERANCE = 1e-9


class Shape(NamedTuple):
    """Rows, features and classes."""

    rows: int
    features: int
    classes: int

    def __str__(self) -> str:
        return " × ".join(map(str, self))


SHAPES = (Shape(256, 2048, 32000),)


def inputs(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, weights, labels."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((shape.rows, shape.features), np.float32)
    w = 0.02 * generator.standard_normal((shape.classes, shape.features), np.float32)
    bfloat16 = ml_dtypes.bfloat16
    return x.astype(bfloat16), w.astype(bfloat16), generator.integers(0, shape.classes, shape.rows)


def _refloss(shape: Shape) -> Callable[[], Any]:
    arrays = inputs(shape)
    return lambda: refloss.linear_cross_entropy(*arrays)


def _log_probs(shape: Shape) -> Callable[[], Any]:
    arrays, cotangents = inputs(shape), {"log_probs": -1.0, "entropy": -0.01}
    return lambda: refloss.linear_selected_log_probs(*arrays, grad_output=cotangents)


def _products(shape: Shape) -> Callable[[], Any]:
    x, w = (array.astype(np.float64) for array in inputs(shape)[:2])

    def call() -> tuple[Any, Any]:
        z = x @ w.T
        return z @ w, z.T @ x

    return call


def _torch(shape: Shape) -> Callable[[], Any]:
    import torch

    arrays = inputs(shape)
    x, w = (torch.from_numpy(array.astype(np.float64)).requires_grad_() for array in arrays[:2])
    labels = torch.from_numpy(arrays[2])

    def call() -> tuple[Any, Any]:
        loss = torch.nn.functional.linear_cross_entropy(x, w, labels)
        return loss.detach(), torch.autograd.grad(loss, (x, w))

    return call


CALLS = {PRODUCTS: _products, REFLOSS: _refloss, LOG_PROBS: _log_probs, TORCH: _torch}


def times(shape: Shape) -> dict[str, Timing]:
    """Timings of all, of which two compute the same."""
    calls = {name: prepare(shape) for name, prepare in CALLS.items()}
    ours, theirs = calls[REFLOSS]().loss, float(calls[TORCH]()[0])
    if abs(ours - theirs) > TOLERANCE * ours:
        raise ValueError(f"torch has loss {theirs}, refloss {ours}: they do not compute the same")
    return interleaved(calls, ROUNDS)


def peak(name: str, shape: Shape) -> int | None:
    """Peak memory of a call beyond its inputs; for a fresh process."""
    CALLS[name](Shape(3, 4, 5))()
    return peak_memory(CALLS[name](shape))


def rows(shape: Shape) -> tuple[list[tuple[str, ...]], list[Aim]]:
    """The lines of one shape, and the aim in them."""
    peaks = {name: in_fresh_process(peak, name, shape) for name in CALLS}
    timings = in_fresh_process(times, shape)
    aim = Aim(timings[REFLOSS].median / timings[PRODUCTS].median, AIM, "× products", at_least=False)
    lines: list[tuple[str, ...]] = []
    for name, timing in timings.items():
        memory = peaks[name]
        cells = (str(shape) if name == PRODUCTS else "", name, f"{timing.median:.2f}", f"{timing.spread:.2f}")
        ratio = f"{timing.median / timings[PRODUCTS].median:.2f}"
        held = aim.cells() if name == REFLOSS else ("", "")
        lines.append((*cells, ratio, *held, "" if memory is None else f"{memory / 1e6:.0f}"))
    return lines, [aim]


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    lines: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for shape in SHAPES:
        with console.status(str(shape)):
            more, held = rows(shape)
        lines += more
        aims += held
    table = Table("Losses of a linear layer: values and gradients, bfloat16", COLUMNS, lines)
    conclusion = f"{sum(aim.holds() for aim in aims)} of {len(aims)} aims hold."
    publish("linear", machine(("refloss", "numpy", "numba", "torch")), (table,), conclusion, write)


if __name__ == "__main__":
    main()
