"""Routers on a GPU: a thread for each row, with the helpers and in the order of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.routers.loop import CHOICES, LINES, clear, lines_of, share_of, work_on
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair
from refloss.numerics.sums import limb_parts, mantissa_of

if TYPE_CHECKING:
    from refloss.kernels.routers.loop import Results, Sums
    from refloss.kernels.routers.run import Task

_BLOCK = 64
# Of the scratch that all threads work in: as many rows as fit are worked on at a time.
_SCRATCH_BYTES = 1 << 28


class Memory(NamedTuple):
    """What threads work in."""

    scratches: Any  # [threads, lines, E] float64


@gpu_function
def _deposit(value, expert, limbs):
    magnitude, negative, offset = mantissa_of(value)
    limb, low, middle, high = limb_parts(magnitude, negative, offset)
    cuda.atomic.add(limbs, (expert, limb), low)
    cuda.atomic.add(limbs, (expert, limb + 1), middle)
    cuda.atomic.add(limbs, (expert, limb + 2), high)


@gpu_function
def _add_shares(lines, softmax, sums):
    if not softmax.defined:
        cuda.atomic.add(sums.undefined, 0, 1)
        return
    for e in range(lines.z.size):
        share = share_of(lines, softmax, e)
        _deposit(share[0], e, sums.limbs)
        _deposit(share[1], e, sums.limbs)


@gpu_kernel
def router_rows(rows, gradient, given, results, sums, memory, step, with_gradient, first, last):
    """loop.router_rows, a thread for each row."""
    threads = memory.scratches.shape[0]
    if cuda.grid(1) < threads:
        lines = lines_of(memory.scratches[cuda.grid(1)])
        for row in range(first + cuda.grid(1), last, threads):
            if given.counts[row]:
                start = row_offset(rows, row)
                for e in range(rows.classes):
                    lines.z[e] = read(rows.memory, start + e * rows.class_stride)
                softmax = work_on(lines, row, given, results, step, with_gradient)
                if step == CHOICES:
                    _add_shares(lines, softmax, sums)
            else:
                clear(lines, 0.0)
            start = row_offset(gradient, row)
            for e in range(gradient.classes if with_gradient else 0):
                store_pair(gradient.memory, start + e * gradient.class_stride, (lines.part[e], lines.part_low[e]))


def run(task: Task, results: Results, sums: Sums, step: int) -> None:
    """A step of a task's rows; results, sums and chosen experts are written."""
    axis = task.logits.ndim - 1
    rows = runtime.rows_on_device(task.logits, axis)
    some = task.last - task.first < len(task.given.counts)
    buffer = None if task.gradient is None else runtime.Gradient(task.gradient, initial=some)
    gradient = rows if buffer is None else runtime.rows_on_device(buffer.array, axis)
    lanes = max(1, min(task.last - task.first, _SCRATCH_BYTES // max(1, 8 * LINES * rows.classes)))
    memory = Memory(runtime.Array((lanes, LINES, rows.classes), np.float64))
    hosts = (*results, *sums, task.given.chosen)
    written: list[Any] = [runtime.Array.of(array) for array in hosts]
    given = task.given._replace(chosen=written[-1])
    arguments = (rows, gradient, given, type(results)(*written[:2]), type(sums)(*written[2:4]), memory, step)
    blocks = -(-lanes // min(_BLOCK, runtime.LARGEST_BLOCK))
    runtime.launch(router_rows, blocks, _BLOCK, *arguments, buffer is not None, task.first, task.last)
    for array, kept in zip(written, hosts, strict=True):
        array.download(kept)
    if buffer is not None:
        buffer.finish()
