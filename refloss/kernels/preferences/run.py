"""Pairs of sequences: from arrays to loops and back, and which device they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.preferences.loop import Given, PreferenceLoop, compiled
from refloss.kernels.rows import elements_of
from refloss.numerics.memory import as_writable

BLOCK_PAIRS = 1 << 12
# Stands in for what is not written.
_NOWHERE = elements_of(np.empty(()))


class Task(NamedTuple):
    """A loss of pairs as it is stated: arrays of one shape."""

    loop: PreferenceLoop
    inputs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # chosen, rejected and their references
    gradients: tuple[np.ndarray | None, np.ndarray | None]
    given: Given


def preference_losses(task: Task, backend: str) -> np.ndarray:
    """The losses of the pairs [2, B], pairs; gradients are written into the task's buffers."""
    given = task.given._replace(cotangent=as_writable(task.given.cotangent))
    return _device(backend)(task._replace(given=given))


def _device(backend: str) -> Callable[[Task], np.ndarray]:
    if runs_on_gpu(backend):
        from refloss.kernels.preferences import gpu

        return gpu.run
    return _run


def _run(task: Task) -> np.ndarray:
    count = task.inputs[0].size
    losses = np.empty((2, count))
    rows = tuple(elements_of(array, task.inputs[0].shape) for array in task.inputs)
    written = tuple(_NOWHERE if buffer is None else elements_of(buffer) for buffer in task.gradients)
    wanted = tuple(buffer is not None for buffer in task.gradients)
    kernel = compiled(task.loop)

    def work(first: int, last: int, _: None) -> None:
        kernel(rows, written, wanted, task.given, losses, first, last)

    parallel.run_blocks(work, count, BLOCK_PAIRS, lambda: None)
    return losses
