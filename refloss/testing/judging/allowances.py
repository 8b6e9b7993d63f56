"""How far a candidate may be off, as tensors beside the right answers of a golden file.

A reader of the file needs no more than |candidate − right| ≤ allowance. The candidate's own rounding is in it, for a
candidate of the type that the file's inputs ask for, and so is that of the right answer. A gradient in 16 bits is
judged against the unrounded one, which is there as well. docs/golden_format.md tells the rule.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.source import Case
from refloss.error_model import Bound, bounds
from refloss.files import disk_array
from refloss.golden.store import evaluate, expected_tensors, gradient_on_disk
from refloss.registry import FUNCTIONS
from refloss.testing.judging.judge import default_compute_dtype
from refloss.testing.spacing import FLOATS, spacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from refloss.golden.store import Beside
    from refloss.result import LossResult

_BLOCK = 1 << 20


def written_beside(types: tuple[str, ...], folder: Path) -> Beside | None:
    """What a file has beside its right answers for candidates that compute in some types; on disk in a folder."""
    return functools.partial(_allowances, types=types, folder=folder) if types else None


@contextlib.contextmanager
def _allowances(case: Case, result: LossResult, *, types: tuple[str, ...], folder: Path) -> Iterator[dict[str, Any]]:
    wide = np.dtype(default_compute_dtype(case))
    arrays = {name.removeprefix("expected."): np.asarray(value) for name, value in expected_tensors(result).items()}
    expected = {name: value for name, value in arrays.items() if value.dtype in FLOATS}
    with contextlib.ExitStack() as stack:
        unrounded = _unrounded(case, stack, folder)
        tensors: dict[str, Any] = {f"exact.{name}": value for name, value in unrounded.items()}
        for kind in types:
            for name, bound in bounds(case, result, kind).items():
                if name not in expected:
                    continue
                right = np.asarray(unrounded.get(name, expected[name]))
                got = expected[name].dtype if name.startswith("grad.") else wide
                allowed = stack.enter_context(disk_array(folder, right.shape, wide))
                _fill(allowed, bound, right, got)
                tensors[f"bound.{kind}.{name}"] = allowed
        yield tensors


def _unrounded(case: Case, stack: contextlib.ExitStack, folder: Path) -> dict[str, np.ndarray]:
    """Gradients of 16-bit inputs in float32: those of the same numbers as float32."""
    narrow = {name for name, value in case.inputs.items() if value.dtype in FLOATS and value.dtype.itemsize == 2}
    if not narrow:
        return {}
    inputs = dict(case.inputs)
    for name in narrow:
        inputs[name] = stack.enter_context(disk_array(folder, inputs[name].shape, np.dtype(np.float32)))
        inputs[name][...] = case.inputs[name]
    buffer = stack.enter_context(gradient_on_disk(FUNCTIONS[case.function], inputs, folder))
    grads = evaluate(case._replace(inputs=inputs), **buffer).grads
    return {f"grad.{name}": value for name, value in grads.items() if name in narrow}


@np.errstate(all="ignore")
def _fill(allowed: np.ndarray, bound: Bound, right: np.ndarray, got: np.dtype[Any]) -> None:
    """An allowance for every element: its bound, the rounding to a type, and that of what is right; in blocks."""
    for start in range(0, right.size, _BLOCK):
        block = slice(start, min(start + _BLOCK, right.size))
        size = np.abs(right.flat[block].astype(np.float64))
        size[~np.isfinite(size)] = 0.0
        limit = bound.part(block.start, block.stop)
        exact = limit + (spacing(size + limit, got) + spacing(size, right.dtype)) / 2
        allowed.flat[block] = _rounded_up(exact, allowed.dtype)


@np.errstate(all="ignore")
def _rounded_up(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    rounded = values.astype(dtype)
    return np.where(rounded < values, np.nextafter(rounded, dtype.type(np.inf)), rounded)
