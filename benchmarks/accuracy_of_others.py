"""How many elements of a float32 gradient others round correctly, and how far off their worst is, against mpmath."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

import numpy as np
from mpmath import mp

from benchmarks.competitors import COMPETITORS, JAX, REFLOSS, TORCH
from benchmarks.report import Table, console

CLASSES = 128256
ORDINARY_ROWS = 6
# The others' terms add up to about e^16, so that p of the label is 1 − 1e-6 and 1 − 2e-15.
CONFIDENT_LOGITS = (30.0, 50.0)
ROWS = ORDINARY_ROWS + len(CONFIDENT_LOGITS)
# Leaves some 60 bits beyond what two float64 numbers hold.
PRECISION = 160


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Ordinary rows first, then confident ones."""
    generator = np.random.default_rng(1)
    logits = generator.standard_normal((ROWS, CLASSES), dtype=np.float32)
    logits *= 3
    labels = generator.integers(CLASSES, size=ROWS)
    logits[np.arange(ORDINARY_ROWS, ROWS), labels[ORDINARY_ROWS:]] = CONFIDENT_LOGITS
    return logits, labels


def exact_row(row: np.ndarray, label: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of a row of the mean over rows, as sums high + low of two float64 numbers."""
    with mp.workprec(PRECISION):
        top = mp.mpf(float(row.max()))
        terms = [mp.exp(mp.mpf(value) - top) for value in row.tolist()]
        others = mp.fsum(terms[:label] + terms[label + 1 :])
        factor = 1 / (rows * (others + terms[label]))
        gradient = [term * factor for term in terms]
        gradient[label] = -others * factor
        high = [float(value) for value in gradient]
        low = [float(value - leading) for value, leading in zip(gradient, high, strict=True)]
    return np.array(high), np.array(low)


def errors(gradient: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Distance from the exact gradient in units in the last place of float32; at most 0.5 where correctly rounded."""
    _, exponent = np.frexp(high)
    ulp = np.ldexp(1.0, np.maximum(exponent, -125) - 24)
    distance: np.ndarray = np.abs((gradient.astype(np.float64) - high) - low) / ulp
    return distance


def table() -> Table:
    """Mean cross-entropy by refloss, torch and JAX."""
    logits, labels = inputs()
    gradients = {name: np.asarray(COMPETITORS[name].prepare(logits, labels)()[1]) for name in (REFLOSS, TORCH, JAX)}
    with console.status("mpmath"), ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        truth = list(pool.map(exact_row, logits, labels.tolist(), repeat(ROWS)))
    high, low = (np.stack(parts) for parts in zip(*truth, strict=True))
    at_label = np.zeros(logits.shape, dtype=bool)
    at_label[np.arange(ROWS), labels] = True
    rows: list[tuple[str, ...]] = []
    for kind, part in (("ordinary", slice(ORDINARY_ROWS)), ("confident", slice(ORDINARY_ROWS, None))):
        for name, gradient in gradients.items():
            error = errors(gradient, high, low)[part]
            others, label = error[~at_label[part]], error[at_label[part]]
            share = f"{100 * np.mean(error <= 0.5):.4f} %"
            rows.append((kind, name, share, f"{others.max():.4g}", f"{label.max():.4g}"))
    columns = ("rows", "implementation", "correctly rounded", "worst of the others, ulp", "worst of the labels, ulp")
    title = f"Float32 gradient of mean cross-entropy, {ROWS} × {CLASSES}"
    return Table(title, columns, rows)
