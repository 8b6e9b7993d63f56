"""CTC: from arrays to kernels and back; sequences are shared out among threads."""

from __future__ import annotations

import math

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.ctc.frames import LANES, Chosen
from refloss.kernels.ctc.loop import LOOK, PART, SLOPES, SWEEP, WHOLE, Lattice, Scratch, Task, Terms, ctc_sequences
from refloss.kernels.ctc.states import MARGIN, Paths, empty, find_paths, whole_groups, zeros
from refloss.kernels.rows import any_rows_of
from refloss.numerics.memory import as_writable

# How many pairs of states of all frames are worth a thread's while: calling a kernel takes as long as some thousand.
_PAIRS = 1 << 14


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
    pairs, distinct = whole_groups(most + 1), min(most + 1, classes)
    offsets = np.concatenate([[0], np.cumsum(task.target_lengths)]).astype(np.int64)
    shapes = {"labels": distinct, "slots": pairs, "skips": pairs + 1, "starts": distinct + 1, "order": most}
    paths = Paths(
        frames=as_writable(task.input_lengths),
        counts=np.empty(count, np.int64),
        distinct=np.empty(count, np.int64),
        **{name: np.zeros((count, size), np.int64) for name, size in shapes.items()},
    )
    find_paths(as_writable(task.targets), offsets, task.blank, np.full(classes, -1, np.int64), paths)
    return paths


def _run(task: Task, paths: Paths, nll: np.ndarray) -> None:
    rows = any_rows_of(task.logits, task.logits.ndim - 1)
    gradient = rows if task.gradient is None else any_rows_of(task.gradient, task.logits.ndim - 1)
    terms = terms_of(task)
    count, frames, threads = len(nll), int(paths.frames.max(initial=0)), parallel.get_num_threads()

    made: list[Scratch] = []

    def run(stage: int, parts: int, each: int, shared: Lattice | None) -> None:
        free = made.copy()

        def work(first: int, last: int, space: tuple[Lattice, Scratch]) -> None:
            ctc_sequences(rows, gradient, paths, terms, *space, nll, stage, parts, first, last)

        def space() -> tuple[Lattice, Scratch]:
            try:
                scratch = free.pop()
            except IndexError:
                scratch = _scratch(task, paths)
                made.append(scratch)
            return _lattice(paths, 1) if shared is None else shared, scratch

        parallel.run_blocks(work, count * parts, each, space)

    if not _is_shared(task, paths, threads):
        run(WHOLE, 1, max(1, _PAIRS // max(1, frames * paths.slots.shape[1])), None)
        return
    shared = _lattice(paths, count)
    blocks = -(-frames // _block(frames))
    # Calling a kernel takes as long as a frame or two.
    each = max(1, count * blocks // (4 * threads))
    # A caller hears of the last step alone.
    with parallel.progress(None):
        run(LOOK, blocks, each, shared)
        if task.gradient is not None:
            run(SWEEP, 2, 1, shared)
    if task.gradient is None:
        run(SWEEP, 1, 1, shared)
    else:
        run(SLOPES, blocks, each, shared)


def _is_shared(task: Task, paths: Paths, threads: int) -> bool:
    """Whether several threads work on a sequence.

    They go back through its states twice. Two threads for each gain little by it, or nothing if they are of one core,
    unless classes are most of what there is to do.
    """
    (count, pairs), frames = paths.slots.shape, int(paths.frames.max(initial=0))
    is_worth_it = threads > 2 * count or int(task.logits.shape[-1]) > pairs
    return bool(count < threads and frames * pairs >= 2 * _PAIRS and is_worth_it)


def _block(frames: int) -> int:
    """How many frames are worked on together: as many as there are blocks."""
    return max(1, math.isqrt(frames))


def _lattice(paths: Paths, slots: int) -> Lattice:
    frames, size = int(paths.frames.max(initial=0)), 2 * (paths.slots.shape[1] + 2 * MARGIN)
    blocks = -(-frames // _block(frames))
    return Lattice(
        alphas=empty(slots, blocks, size),
        omegas=empty(slots, blocks, size),
        emitted=empty(slots, frames, _width(paths)),
        maxima=np.empty((slots, frames)),
        totals=np.empty((slots, frames, 4)),
        ends=empty(slots, 2),
    )


def _width(paths: Paths) -> int:
    """Labels that are different, and one that is none, which states behind the last one have."""
    return whole_groups(paths.labels.shape[1] + 1)


def _scratch(task: Task, paths: Paths) -> Scratch:
    pairs, block = paths.slots.shape[1], _block(int(paths.frames.max(initial=0)))
    classes = -(-task.logits.shape[-1] // LANES) * LANES
    return Scratch(
        alphas=zeros(block + 1, 2 * (pairs + 2 * MARGIN)),
        omegas=zeros(2, 2 * (pairs + 2 * MARGIN)),
        emitted=zeros(block, pairs),
        betas=zeros(2, pairs),
        shares=np.zeros((4, pairs)),
        lanes=np.zeros((2, LANES)),
        chosen=Chosen(*np.zeros((len(Chosen._fields), _width(paths)))),
        row=np.zeros(classes if task.is_softmax else 0),
        parts=np.zeros((2, PART)),
    )
