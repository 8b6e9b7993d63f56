"""CTC: from arrays to kernels and back; sequences are shared out among threads."""

from __future__ import annotations

import math

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.ctc.frames import LANES, Chosen
from refloss.kernels.ctc.loop import PART, Scratch, Task, Terms, ctc_sequences
from refloss.kernels.ctc.states import MARGIN, Paths, find_paths, zeros
from refloss.kernels.rows import any_rows_of
from refloss.numerics.memory import as_writable

# How many states of all frames are worth a thread's while: calling a kernel takes as long as some thousand.
_STATES = 1 << 15


def ctc_loss(task: Task, backend: str) -> np.ndarray:
    """−log of each sequence's probability as pairs [N, 2]; the gradient is written into the task's buffer."""
    on_gpu = runs_on_gpu(backend)
    paths = _paths(task)
    nll = np.zeros((len(task.input_lengths), 2))
    if on_gpu:
        from refloss.kernels.ctc import gpu

        gpu.run(task, paths, terms_of(task), nll)
        return nll
    _run(task, paths, nll)
    return nll


def terms_of(task: Task) -> Terms:
    """What kernels need of a task."""
    return Terms(
        *task.frame_strides,
        length=task.logits.size // max(1, len(task.input_lengths) * task.logits.shape[-1]),
        is_softmax=task.is_softmax,
        zero_infinity=task.zero_infinity,
        with_gradient=task.gradient is not None,
        coefficients=task.coefficients,
    )


def _paths(task: Task) -> Paths:
    """What the sequences go through; only as many labels can be different as there are classes."""
    count, classes = len(task.input_lengths), task.logits.shape[-1]
    most = int(task.target_lengths.max(initial=0))
    states, distinct = 2 * most + 1, min(most + 1, classes)
    offsets = np.concatenate([[0], np.cumsum(task.target_lengths)]).astype(np.int64)
    shapes = {"slots": states, "skips": states + 2, "labels": distinct, "starts": distinct + 1, "order": states}
    paths = Paths(
        frames=as_writable(task.input_lengths),
        states=np.empty(count, np.int64),
        distinct=np.empty(count, np.int64),
        **{name: np.zeros((count, size), np.int64) for name, size in shapes.items()},
    )
    find_paths(as_writable(task.targets), offsets, task.blank, np.full(classes, -1, np.int64), paths)
    return paths


def _run(task: Task, paths: Paths, nll: np.ndarray) -> None:
    rows = any_rows_of(task.logits, task.logits.ndim - 1)
    gradient = rows if task.gradient is None else any_rows_of(task.gradient, task.logits.ndim - 1)
    terms = terms_of(task)

    def work(first: int, last: int, scratch: Scratch) -> None:
        ctc_sequences(rows, gradient, paths, terms, scratch, nll, first, last)

    each = max(1, _STATES // max(1, int(paths.frames.max(initial=0)) * paths.slots.shape[1]))
    parallel.run_blocks(work, len(nll), each, lambda: _scratch(task, paths))


def _block(frames: int) -> int:
    """How many frames are worked on together: as many as there are blocks."""
    return max(1, math.isqrt(frames))


def _scratch(task: Task, paths: Paths) -> Scratch:
    frames, states = int(paths.frames.max(initial=0)), paths.slots.shape[1]
    block = _block(frames)
    blocks, size, labels = -(-frames // block) + 1, states + 2 * MARGIN, paths.labels.shape[1]
    classes = -(-task.logits.shape[-1] // LANES) * LANES
    return Scratch(
        kept=zeros(blocks, size),
        alphas=zeros(block + 1, size),
        omegas=zeros(2, size),
        emitted=zeros(frames, labels),
        spread=zeros(states),
        maxima=np.zeros(frames),
        totals=np.zeros((frames, 4)),
        shares=np.zeros((2, states)),
        chosen=Chosen(*np.zeros((5, labels))),
        row=np.zeros(classes if task.is_softmax else 0),
        part=np.zeros(PART),
    )
