"""Transducers: from arrays to passes over frames and samples and back, and which device they run on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss import parallel
from refloss.dispatch import runs_on_gpu
from refloss.kernels.rows import any_rows_of
from refloss.kernels.transducer.lattice import Arcs, Lattice, Numbers, Samples
from refloss.kernels.transducer.loop import (
    FLOAT_ROWS,
    INTEGER_ROWS,
    LANES,
    Buffers,
    Frames,
    Output,
    slopes,
    sweep,
    weigh,
)
from refloss.numerics.memory import as_writable
from refloss.numerics.sums import MAX_TERMS

if TYPE_CHECKING:
    from refloss.kernels.rows import AnyRows

# Elements of rows that a thread holds as float64, or one row, and how many it takes at a time.
BUFFER_ELEMENTS = 1 << 12
BLOCK_ELEMENTS = 1 << 16


class Task(NamedTuple):
    """A transducer's loss as its file states it; durations and their gradient are None for an RNN-T.

    coefficients holds a pair for each sample, [B, 2]: its cotangent over what its loss is divided by.
    """

    logits: np.ndarray  # [B, T, U + 1, V]
    durations: np.ndarray | None  # [B, T, U + 1, n]
    labels: np.ndarray  # [B, U] int64, of which the first ones of each sample are classes
    frames: np.ndarray  # [B] int64
    counts: np.ndarray  # [B] int64
    blank: int
    blank_steps: tuple[int, ...]
    label_steps: tuple[int, ...]
    sigma: float
    coefficients: np.ndarray
    gradient: np.ndarray | None
    duration_gradient: np.ndarray | None


def samples_of(task: Task) -> Samples:
    """Where the nodes of each sample begin."""
    sizes = task.frames * (task.counts + 1)
    first = np.cumsum(sizes) - sizes
    written = np.arange(task.labels.shape[1]) < task.counts[:, None]
    distinct = ~((task.labels == task.blank) & written).any(axis=1)
    return Samples(task.frames, task.counts, first, as_writable(task.labels), task.blank, distinct)


def arcs_of(task: Task) -> Arcs:
    """The arcs of every node."""
    blanks, labels = (np.array(each, np.int64) for each in (task.blank_steps, task.label_steps))
    return Arcs(blanks, labels, task.durations is not None, task.sigma)


def transducer_losses(task: Task, backend: str) -> np.ndarray:
    """−log P of each sample; gradients are written into the task's buffers."""
    classes = task.logits.shape[-1]
    if classes > MAX_TERMS:
        raise ValueError(f"logits has {classes} classes; expected at most {MAX_TERMS}")
    if runs_on_gpu(backend):
        from refloss.kernels.transducer import gpu

        return gpu.run(task)
    return _Passes(task).losses()


def frames_of(lengths: np.ndarray) -> Frames:
    """Sample and time of every frame of some samples, of which some have none."""
    sample = np.repeat(np.arange(lengths.size), lengths)
    return sample, np.arange(sample.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def has_gradient(task: Task) -> bool:
    """Whether any is wanted."""
    return task.gradient is not None


def close_samples(close: np.ndarray) -> np.ndarray:
    """The samples that are to be computed again."""
    return np.flatnonzero(close.any(axis=1))


def finish_losses(losses: np.ndarray, sound: np.ndarray, frames: np.ndarray) -> None:
    """NaN for samples with a row that has no softmax."""
    outside = np.arange(sound.shape[1]) >= frames[:, None]
    losses[~(sound | outside).all(axis=1)] = np.nan


class _Passes:
    """The passes of one task on the CPU."""

    def __init__(self, task: Task) -> None:
        self.task, self.samples, self.arcs = task, samples_of(task), arcs_of(task)
        batch, self.times = task.logits.shape[:2]
        nodes = int((task.frames * (task.counts + 1)).sum())
        steps = len(task.blank_steps) if self.arcs.weighted else 0
        self.lattice = _empty_lattice(nodes, steps, has_gradient(task))
        shape = batch, self.times
        self.output = Output(np.ones(shape, bool), np.zeros(shape, bool), np.empty(batch), _numbers(batch))
        self.logits = any_rows_of(task.logits, 3)
        self.durations = self.logits if task.durations is None else any_rows_of(task.durations, 3)

    def losses(self) -> np.ndarray:
        """All passes; those of samples whose gradients are too close to 0 once more."""
        everything = np.arange(self.samples.frames.size)
        with parallel.passes(self._rows()):
            self._weigh(everything, accurate=False)
            self._sweep(everything, accurate=False)
            finish_losses(self.output.losses, self.output.sound, self.samples.frames)
            if has_gradient(self.task):
                self._slopes(everything)
        if has_gradient(self.task):
            again = close_samples(self.output.close)
            # How many there are is known by now alone, and few are.
            if again.size:
                with parallel.progress(None):
                    self._weigh(again, accurate=True)
                    self._sweep(again, accurate=True)
                    self._slopes(again)
        losses: np.ndarray = self.output.losses
        return losses

    def _rows(self) -> int:
        """What the passes over everything go through: frames, samples each way, and frames of gradients."""
        batch, frames = len(self.samples.frames), int(self.samples.frames.sum())
        each = 2 + int(self.times) if has_gradient(self.task) else 1
        return frames + batch * each

    def _buffers(self) -> Buffers:
        size, steps = self.logits.classes, len(self.task.blank_steps)
        rows = max(1, BUFFER_ELEMENTS // max(1, size))
        lanes = np.zeros(FLOAT_ROWS * LANES), np.zeros(INTEGER_ROWS * LANES, np.int64)
        return Buffers(np.empty(rows * size), np.empty(rows * size), np.empty(steps), _numbers(steps), *lanes)

    def _block(self, frames: int) -> int:
        elements = self.task.logits[0, 0].size if self.task.logits.size else 1
        return max(1, min(BLOCK_ELEMENTS // elements, frames // 8))

    def _weigh(self, chosen: np.ndarray, *, accurate: bool) -> None:
        lengths = np.zeros_like(self.samples.frames)
        lengths[chosen] = self.samples.frames[chosen]
        frames = frames_of(lengths)

        def work(first: int, last: int, buffers: Buffers) -> None:
            weigh(
                self.logits, self.durations, self.samples, self.arcs, self.lattice, self.output, frames, buffers,
                accurate, first, last,
            )  # fmt: skip

        parallel.run_blocks(work, frames[0].size, self._block(frames[0].size), self._buffers)

    def _sweep(self, chosen: np.ndarray, *, accurate: bool) -> None:
        """Both directions of each sample, if there are gradients; the longest first would not show."""
        ways = 2 if has_gradient(self.task) else 1

        def work(first: int, last: int, buffers: Buffers) -> None:
            for item in range(first, last):
                backwards = item % ways == 0
                sample = int(chosen[item // ways])
                sweep(self.samples, self.arcs, self.lattice, self.output, buffers, not backwards, not accurate, sample)

        parallel.run_blocks(work, ways * chosen.size, 1, self._buffers)

    def _slopes(self, chosen: np.ndarray) -> None:
        task = self.task
        assert task.gradient is not None
        lengths = np.zeros_like(self.samples.frames)
        lengths[chosen] = self.times
        frames = frames_of(lengths)
        gradient = any_rows_of(task.gradient, 3)
        of_durations = gradient if task.duration_gradient is None else any_rows_of(task.duration_gradient, 3)
        wide = _is_wide(gradient), _is_wide(of_durations)

        def work(first: int, last: int, buffers: Buffers) -> None:
            slopes(
                self.logits, self.durations, gradient, of_durations, self.samples, self.arcs, self.lattice,
                self.output, frames, buffers, task.coefficients, wide, first, last,
            )  # fmt: skip

        parallel.run_blocks(work, frames[0].size, self._block(frames[0].size), self._buffers)


def _is_wide(rows: AnyRows) -> bool:
    return rows.format == 0


def _numbers(size: int) -> Numbers:
    return _numbers_in(np.empty((3, size)))


def _numbers_in(block: np.ndarray) -> Numbers:
    return Numbers(block[0], block[1], block[2].view(np.int64))


def _empty_lattice(nodes: int, steps: int, with_gradient: bool) -> Lattice:
    """Without gradients nobody asks for α. One array for all: NumPy has larger pages for it, which cost far less."""
    block = np.empty((18, nodes))
    blank, label, share, beta, alpha = (_numbers_in(block[i : i + 3]) for i in range(0, 15, 3))
    return Lattice(blank, label, share, *block[15:], _numbers(nodes * steps), alpha if with_gradient else beta, beta)
