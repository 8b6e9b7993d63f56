"""Kernels are compiled once: not again for arrays that are read-only, as mapped files are, or laid out otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import refloss
from refloss.cases.source import Case
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate, expected_tensors
from refloss.numerics.exact import exact_sum
from refloss.numerics.memory import as_writable
from refloss.registry import FUNCTIONS


def writable(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="C")


def read_only(array: np.ndarray) -> np.ndarray:
    result = writable(array)
    result.flags.writeable = False
    return result


def strided(array: np.ndarray) -> np.ndarray:
    """Read-only, and every other element of the memory along the last axis, from the end of the first."""
    if array.ndim == 0:
        return read_only(array)
    memory = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)[::-1]
    memory[..., ::2] = array
    memory.flags.writeable = False
    return memory[..., ::2]


def column_by_column(array: np.ndarray) -> np.ndarray:
    return np.array(array, order="F")


def changed(change: Callable[[np.ndarray], np.ndarray], value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, dict):
        return {name: changed(change, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(changed(change, part) for part in value)
    return value


def compute(case: Case, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """What a function returns, values that are computed when they are asked for included."""
    inputs, parameters, cotangent = (changed(change, part) for part in case[2:])
    result = evaluate(Case(case.id, case.function, inputs, parameters, cotangent))
    later = {name: result.intermediates[name] for name in result.intermediates}
    return {**expected_tensors(result), **later}


def is_empty(case: Case) -> bool:
    return any(value.size == 0 for value in case.inputs.values())


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled, or read from disk, from now on: once for each signature of a kernel."""
    names: list[str] = []
    add = Dispatcher.add_overload

    def add_overload(self: Any, compiled: Any) -> None:
        names.append(f"{self.py_func.__qualname__} of {compiled.signature}")
        add(self, compiled)

    monkeypatch.setattr(Dispatcher, "add_overload", add_overload)
    return names


@pytest.mark.parametrize("name", FUNCTIONS)
def test_how_an_array_lies_in_memory_compiles_nothing(name: str, loaded: list[str]) -> None:
    cases = cases_of(name)
    # Those without elements last: they have the types of the others.
    for case in sorted(cases, key=is_empty):
        before = len(loaded)
        expected = compute(case, writable)
        assert not (is_empty(case) and loaded[before:])
        before = len(loaded)
        for change in (read_only, strided, column_by_column):
            found = compute(case, change)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert np.asarray(found[key]).tobytes() == np.asarray(value).tobytes(), (case.id, key)
            assert loaded[before:] == [], case.id


def test_labels_of_every_integer_dtype_compile_nothing(loaded: list[str]) -> None:
    x, labels = np.linspace(-1, 1, 24).reshape(4, 6), np.array([0, 5, 2, 3])
    calls = (refloss.nll, refloss.cross_entropy)
    for call in calls:
        call(x, labels)
    before = len(loaded)
    for dtype in "bBhHiIlL":
        for call in calls:
            call(x, read_only(labels.astype(dtype)))
    assert loaded[before:] == []


def test_an_exact_sum_of_what_is_read_only_compiles_nothing(loaded: list[str]) -> None:
    values = np.array([1.0, 2.0**-60, -1.0])
    assert exact_sum(values) == 2.0**-60
    before = len(loaded)
    assert exact_sum(read_only(values)) == 2.0**-60
    assert exact_sum(read_only(values[:0])) == 0
    assert loaded[before:] == []


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)])
def test_a_writable_array_is_a_view_of_the_same_values(shape: tuple[int, ...]) -> None:
    array = read_only(np.arange(1.0, 7.0)[: int(np.prod(shape))].reshape(shape))
    result = as_writable(array)
    assert result.flags.writeable
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, array)
    assert result.size == 0 or np.shares_memory(result, array)
    assert as_writable(result) is result
    transposed = as_writable(array.T)
    assert transposed.flags.writeable
    np.testing.assert_array_equal(transposed, array.T)
