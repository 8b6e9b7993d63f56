"""Terms of flow matching: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.flow.loop import Terms, Wanted, flow_rows
from refloss.kernels.rows import AnyRows, any_rows_of, elements_of
from refloss.numerics.exact import Exact, as_pair, exact_sum

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_ELEMENTS = 1 << 14
# What start and end are where the residual is x + y − z.
_ZERO, _ONE = np.zeros(()), np.ones(())


class Arrays(NamedTuple):
    """Rows x and y [N, D] and z [F, D], N a multiple of F, and numbers [N]; or gradients of some of them."""

    x: np.ndarray | None
    y: np.ndarray | None
    z: np.ndarray | None
    start: np.ndarray | None
    end: np.ndarray | None
    log_variance: np.ndarray | None


class Sums(NamedTuple):
    """A loop's arguments: what it reads, where it writes, and of each row a value, a pair."""

    arrays: Arrays
    gradients: Arrays
    coefficient: tuple[float, float]
    values: np.ndarray
    values_low: np.ndarray

    @property
    def wanted(self) -> Wanted:
        """What is written."""
        return Wanted(*(gradient is not None for gradient in self.gradients))


def flow_term(arrays: Arrays, gradients: Arrays, coefficient: Exact, backend: str) -> Exact:
    """Σ (|r|²·e^w/D − w) over all rows; gradients are those of it times a coefficient."""
    assert arrays.x is not None
    times = {"start": _ZERO, "end": _ONE} if arrays.start is None else {}
    count = len(arrays.x)
    sums = Sums(arrays._replace(**times), gradients, as_pair(coefficient), np.empty(count), np.empty(count))
    _device(backend)(sums)
    total, rest = exact_sum(sums.values), exact_sum(sums.values_low)
    return total + rest


def _device(backend: str) -> Callable[[Sums], None]:
    if runs_on_gpu(backend):
        from refloss.kernels.flow import gpu

        return gpu.run
    return _run


def _run(sums: Sums) -> None:
    arrays, wanted = sums.arrays, sums.wanted
    assert arrays.x is not None
    assert arrays.z is not None
    frames, shape = len(arrays.z), (len(arrays.x),)
    read = Terms(*(_rows(array, shape) for array in arrays))
    written = Terms(
        *(source if array is None else _rows(array, shape) for array, source in zip(sums.gradients, read, strict=True))
    )
    samples = shape[0] // frames if frames else 0
    block = max(1, BLOCK_ELEMENTS // max(1, samples * arrays.x.shape[1]))

    def work(first: int, last: int, _: None) -> None:
        where = sums.values, sums.values_low, first, last
        flow_rows(read, written, wanted, sums.coefficient, samples, frames, *where)

    parallel.run_blocks(work, frames, block, lambda: None)


def _rows(array: np.ndarray | None, shape: tuple[int, ...]) -> AnyRows:
    """Rows of two axes, or elements of one; one number stands for a shape of them."""
    assert array is not None
    return any_rows_of(array, 1) if array.ndim == 2 else elements_of(array, shape)
