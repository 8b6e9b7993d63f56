"""What the tests of the CUDA backend share: the CPU's bits, demanded of a simulated GPU and of a real one."""

from typing import Any

import numpy as np

from refloss.cases.source import Case
from refloss.files import nested
from refloss.registry import FUNCTIONS


def assert_same_bits(got: Any, wanted: Any, what: str) -> None:
    """The same type, shape and bits; any NaN for a NaN."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), what
    if got.tobytes() == wanted.tobytes():
        return
    undefined = np.isnan(wanted)
    assert np.array_equal(np.isnan(got), undefined), what
    kind = np.dtype(f"u{got.itemsize}")
    different = (np.ascontiguousarray(got).view(kind) != np.ascontiguousarray(wanted).view(kind)) & ~undefined
    assert not different.any(), f"{what}: {got[different][:3]} for {wanted[different][:3]}, {different.sum()} in all"


def assert_same_result(got: Any, wanted: Any) -> None:
    """The same bits in all that a result has, but for what it computes only when asked for."""
    assert_same_bits(got.loss, wanted.loss, "loss")
    for part in ("grads", "components", "intermediates"):
        mine, theirs = (getattr(result, part) for result in (got, wanted))
        if part == "intermediates":
            assert set(mine) == set(theirs)
            mine, theirs = mine.computed(), theirs.computed()
        assert set(mine) == set(theirs)
        for name in theirs:
            assert_same_bits(mine[name], theirs[name], f"{part}[{name!r}]")


def assert_case_has_the_cpu_s_bits(case: Case) -> None:
    """A golden case on both devices."""
    call = FUNCTIONS[case.function].call
    results = [
        call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output, backend=backend)
        for backend in ("cuda", "cpu")
    ]
    assert_same_result(*results)
