"""Log-probabilities on a GPU: a thread for each row, with the helpers and in the order of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_kernel
from refloss.kernels.log_probs.loop import LINES, PART, PART_LOW, Asked, Results, X, clear, work_on
from refloss.kernels.log_probs.run import new_results
from refloss.kernels.rows import row_offset
from refloss.numerics.formats import read, store_pair

if TYPE_CHECKING:
    from refloss.kernels.log_probs.run import Task

_BLOCK = 64
# Of the scratch that all threads work in: as many rows as fit are worked on at a time.
_SCRATCH_BYTES = 1 << 28


class Memory(NamedTuple):
    """What threads work in."""

    scratches: Any  # [threads, lines, V] float64


@gpu_kernel
def log_prob_rows(rows, gradient, given, results, memory, with_gradient):
    """loop.log_prob_rows, a thread for each row."""
    threads = memory.scratches.shape[0]
    if cuda.grid(1) < threads:
        scratch = memory.scratches[cuda.grid(1)]
        for row in range(cuda.grid(1), results.entropy.size, threads):
            results.entropy[row] = 0.0
            if given.counts[row]:
                start = row_offset(rows, row)
                for c in range(rows.classes):
                    scratch[X, c] = read(rows.memory, start + c * rows.class_stride)
                asked = Asked(given.classes[row], given.upstream[row], given.of_entropy[row], given.chain)
                results.entropy[row] = work_on(scratch, asked, results.log_probs[row], with_gradient)
            else:
                clear(scratch, results.log_probs[row])
            start = row_offset(gradient, row)
            for c in range(gradient.classes if with_gradient else 0):
                slope = scratch[PART, c], scratch[PART_LOW, c]
                store_pair(gradient.memory, start + c * gradient.class_stride, slope)


def run(task: Task) -> Results:
    """Log-probabilities and entropies of the rows; the gradient is written."""
    results, axis = new_results(task.given), task.logits.ndim - 1
    rows = runtime.rows_on_device(task.logits, axis)
    buffer = None if task.gradient is None else runtime.Gradient(task.gradient)
    gradient = rows if buffer is None else runtime.rows_on_device(buffer.array, axis)
    count = len(results.entropy)
    lanes = max(1, min(count, _SCRATCH_BYTES // max(1, 8 * LINES * rows.classes)))
    memory = Memory(runtime.Array((lanes, LINES, rows.classes), np.float64))
    written: list[Any] = [runtime.Array(array.shape, array.dtype) for array in results]
    blocks = -(-lanes // min(_BLOCK, runtime.LARGEST_BLOCK))
    arguments = (rows, gradient, task.given, Results(*written), memory, buffer is not None)
    runtime.launch(log_prob_rows, blocks, _BLOCK, *arguments)
    for array, kept in zip(written, results, strict=True):
        array.download(kept)
    if buffer is not None:
        buffer.finish()
    return results
