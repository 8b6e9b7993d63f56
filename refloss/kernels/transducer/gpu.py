"""Transducers on a GPU: the passes of kernels.transducer.run, with their very numbers.

A thread takes a row; a block takes a sample's lattice, whose nodes with one t + u need each other's values for nothing
but the label's arc within a frame, and that comes from the diagonal before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda

from refloss.kernels.gpu import runtime
from refloss.kernels.gpu.jit import gpu_function, gpu_kernel
from refloss.kernels.rows import row_offset
from refloss.kernels.transducer.lattice import (
    Lattice,
    Node,
    Numbers,
    accurate_counts,
    complement,
    duration_slope,
    from_before,
    from_behind,
    joined,
    keep,
    keep_durations,
    keep_worths,
    load,
    loss_of,
    plain_counts,
    shift_of,
    slopes_of,
    staying,
    sums_behind,
    wants_complement,
    weights,
)
from refloss.kernels.transducer.loop import Output
from refloss.numerics.exponential import exp_difference
from refloss.numerics.extended import ONE, ZERO
from refloss.numerics.formats import before_storing, bounds, magnitude_at, ordinal_at, read, store, value_of
from refloss.numerics.pairs import times
from refloss.numerics.sums import grid_total, long_total

if TYPE_CHECKING:
    from refloss.kernels.transducer.run import Task

_BLOCK = 128


class Chosen(NamedTuple):
    """Which samples a pass is for, and how."""

    samples: Any  # [B] bool
    accurate: bool


@gpu_function
def _sum_of_others(logits, start, blank, label, reference, accurate):
    coarse, fine, finest = np.int64(0), np.int64(0), np.int64(0)
    for c in range(logits.classes):
        if c in (blank, label):
            continue
        x = read(logits.memory, start + c * logits.class_stride)
        if accurate:
            counts = accurate_counts(x, reference)
            coarse, fine, finest = coarse + counts[0], fine + counts[1], finest + counts[2]
        else:
            plain = plain_counts(x, reference)
            coarse, fine = coarse + plain[0], fine + plain[1]
    return long_total(coarse, fine, finest) if accurate else grid_total(coarse, fine, 0)


@gpu_function
def _weigh_row(logits, start, node, blank, label, lattice, accurate):
    """A row's part of the lattice; whether it is sound."""
    memory, stride = logits.memory, logits.class_stride
    lowest, infinity = bounds(memory)
    highest, sound = lowest, True
    for c in range(logits.classes):
        here = ordinal_at(memory, start + c * stride)
        sound = sound and magnitude_at(memory, start + c * stride) <= infinity and here < infinity
        if c not in (blank, label) and here > highest:
            highest = here
    reference = value_of(highest, memory) if lowest < highest < infinity else -np.inf
    of_blank = read(memory, start + blank * stride)
    of_label = read(memory, start + label * stride) if label >= 0 else -np.inf
    sound = sound and max(reference, of_blank, of_label) > -np.inf
    if not sound:
        return False
    others = (0.0, 0.0)
    if reference > -np.inf:
        others = _sum_of_others(logits, start, blank, label, reference, accurate)
    found = weights(reference, others, of_blank, of_label, label == blank, accurate)
    keep(lattice.blank, node, found[0])
    keep(lattice.label, node, found[1])
    keep(lattice.share, node, found[2])
    lattice.reference[node] = reference
    lattice.others[node] = others[0]
    lattice.others_low[node] = others[1]
    return True


@gpu_kernel
def weigh(logits, durations, samples, arcs, lattice, output, chosen, count):
    """What each node weighs; rows beyond a sample's lengths are not read. Only what is unsound is said to be so."""
    width, times_of = samples.labels.shape[1] + 1, output.sound.shape[1]
    for index in range(cuda.grid(1), count, cuda.gridsize(1)):
        frame, u = index // width, index % width
        sample, t = frame // times_of, frame % times_of
        most = samples.counts[sample]
        if not chosen.samples[sample] or t >= samples.frames[sample] or u > most:
            continue
        node = samples.first[sample] + t * (most + 1) + u
        label = samples.labels[sample, u] if u < most else -1
        start = row_offset(logits, index)
        sound = _weigh_row(logits, start, node, samples.blank, label, lattice, chosen.accurate)
        if arcs.weighted:
            start = row_offset(durations, index)
            of_durations = keep_durations(
                lattice, node, durations.memory, start, durations.class_stride, arcs.blanks.size, chosen.accurate
            )
            sound = sound and of_durations
        if not sound:
            output.sound[sample, t] = False


@gpu_function
def _sweep_backwards(lattice, arcs, shift, first, width, frames):
    for diagonal in range(frames + width - 2, -1, -1):
        for u in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            t = diagonal - u
            if 0 <= t < frames:
                node = first + t * width + u
                after = load(lattice.beta, node + 1) if u < width - 1 else ZERO
                later = from_behind(lattice, arcs, shift, first, width, frames, t, u)
                keep(lattice.beta, node, joined(later, staying(lattice, arcs, shift, node), after))
        cuda.syncthreads()


@gpu_function
def _sweep_forwards(lattice, arcs, shift, first, width, frames):
    for diagonal in range(frames + width - 1):
        for u in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            t = diagonal - u
            if 0 <= t < frames:
                node = first + t * width + u
                before = load(lattice.alpha, node - 1) if u > 0 else ZERO
                weight = staying(lattice, arcs, shift, node - 1) if u > 0 else ZERO
                earlier = from_before(lattice, arcs, shift, first, width, t, u)
                keep(lattice.alpha, node, joined(earlier, weight, before))
        cuda.syncthreads()


@gpu_function
def _sweep_complement(lattice, arcs, shift, first, width, frames):
    """1 − P; γ is where α comes afterwards."""
    for diagonal in range(frames + width - 2, -1, -1):
        for u in range(cuda.threadIdx.x, width, cuda.blockDim.x):
            t = diagonal - u
            if 0 <= t < frames:
                value = complement(lattice, arcs, shift, lattice.alpha, first, first, width, frames, t, u)
                keep(lattice.alpha, first + t * width + u, value)
        cuda.syncthreads()
    return load(lattice.alpha, first)


@gpu_kernel
def sweep(samples, arcs, lattice, output, chosen, forwards):
    """A block for each sample: β and the loss, and α."""
    for sample in range(cuda.blockIdx.x, samples.frames.size, cuda.gridDim.x):
        if not chosen.samples[sample]:
            continue
        first, width, frames = samples.first[sample], samples.counts[sample] + 1, samples.frames[sample]
        shift = shift_of(arcs)
        _sweep_backwards(lattice, arcs, shift, first, width, frames)
        total = load(lattice.beta, first) if frames > 0 else ZERO
        missed = ZERO
        if frames > 0 and not chosen.accurate and wants_complement(total, arcs, samples.distinct[sample]):
            missed = _sweep_complement(lattice, arcs, shift, first, width, frames)
            cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            keep(output.totals, sample, total)
            if not chosen.accurate:
                output.losses[sample] = loss_of(total, missed, arcs, samples.distinct[sample])
        if forwards:
            _sweep_forwards(lattice, arcs, shift, first, width, frames)


@gpu_function
def _write_row(logits, start, gradient, to, reference, found, blank, label):
    """A row's gradient."""
    at_one = before_storing(gradient.memory, found.factor)
    at_blank, at_label = before_storing(gradient.memory, found.blank), before_storing(gradient.memory, found.label)
    for c in range(logits.classes):
        term = 0.0
        if reference > -np.inf:
            term = exp_difference(read(logits.memory, start + c * logits.class_stride), reference)
        value = at_one if term == 1.0 else (times(term, found.factor) if reference > -np.inf else 0.0)
        value = at_blank if c == blank else value
        value = at_label if c == label else value
        store(gradient.memory, to + c * gradient.class_stride, value)


@gpu_function
def _fill(rows, index, value):
    to = row_offset(rows, index)
    for c in range(rows.classes):
        store(rows.memory, to + c * rows.class_stride, value)


@gpu_function
def _node(lattice, arcs, first, width, frames, t, u):
    node = first + t * width + u
    of_blanks, of_labels = sums_behind(lattice, arcs, lattice.beta, first, first, width, frames, t, u, ONE, ZERO)
    return Node(
        load(lattice.alpha, node),
        load(lattice.beta, node),
        load(lattice.blank, node),
        load(lattice.label, node),
        load(lattice.share, node),
        of_blanks,
        of_labels,
        (lattice.others[node], lattice.others_low[node]),
    )


@gpu_kernel
def slopes(logits, gradient, of_durations, samples, arcs, lattice, worths, output, chosen, coefficients, count):
    """The gradients of all rows of the chosen samples."""
    width_of, times_of, steps, shift = (
        samples.labels.shape[1] + 1,
        output.sound.shape[1],
        arcs.blanks.size,
        shift_of(arcs),
    )
    for index in range(cuda.grid(1), count, cuda.gridsize(1)):
        frame, u = index // width_of, index % width_of
        sample, t = frame // times_of, frame % times_of
        if not chosen.samples[sample]:
            continue
        frames, width, first = samples.frames[sample], samples.counts[sample] + 1, samples.first[sample]
        total, outside = load(output.totals, sample), t >= frames or u >= width
        if outside or not total[0] > 0.0 or output.losses[sample] != output.losses[sample]:
            _fill(gradient, index, 0.0 if outside else np.nan)
            if arcs.weighted:
                _fill(of_durations, index, 0.0 if outside else np.nan)
            continue
        node, coefficient = first + t * width + u, (coefficients[sample, 0], coefficients[sample, 1])
        label = samples.labels[sample, u] if u < width - 1 else -1
        known = _node(lattice, arcs, first, width, frames, t, u)
        found = slopes_of(known, total, shift, coefficient, label == samples.blank)
        start, to = row_offset(logits, index), row_offset(gradient, index)
        _write_row(logits, start, gradient, to, lattice.reference[node], found, samples.blank, label)
        close = found.close
        if arcs.weighted:
            mean = keep_worths(worths, node * steps, lattice, arcs, first, width, frames, t, u)
            to = row_offset(of_durations, index)
            for i in range(steps):
                value, is_close = duration_slope(
                    worths, node * steps, mean, lattice, arcs, total, shift, coefficient, node, i
                )
                value = before_storing(of_durations.memory, value)
                store(of_durations.memory, to + i * of_durations.class_stride, value)
                close = close or is_close
        if close:
            output.close[sample, t] = True


class _Passes:
    """The passes of one task on the GPU."""

    def __init__(self, task: Task) -> None:
        from refloss.kernels.transducer import run

        self.task = task
        batch, times_of, width, _ = task.logits.shape
        self.shape, self.rows = (batch, times_of), batch * times_of * width
        samples, arcs = run.samples_of(task), run.arcs_of(task)
        nodes = int((task.frames * (task.counts + 1)).sum())
        steps = len(task.blank_steps) if arcs.weighted else 0
        self.samples, self.arcs = runtime.upload(samples), runtime.upload(arcs)
        numbers = [_numbers(size) for size in (nodes, nodes, nodes)]
        others = [runtime.Array((max(nodes, 1),), np.float64) for _ in range(3)]
        more = [_numbers(nodes * steps), _numbers(nodes), _numbers(nodes)]
        self.lattice, self.worths = Lattice(*numbers, *others, *more), _numbers(nodes * steps)
        self.sound, self.close = (runtime.Array.of(np.full(self.shape, value)) for value in (True, False))
        self.losses = runtime.Array((max(batch, 1),), np.float64)
        self.output = Output(self.sound, self.close, self.losses, _numbers(batch))
        self.logits = runtime.rows_on_device(task.logits, 3)
        self.durations = self.logits if task.durations is None else runtime.rows_on_device(task.durations, 3)

    def forwards(self, chosen: np.ndarray, *, accurate: bool, with_gradient: bool) -> None:
        """Weights and the lattice."""
        which = runtime.upload(Chosen(chosen, accurate))
        lattice, output = self.lattice, self.output
        arguments = self.logits, self.durations, self.samples, self.arcs, lattice, output, which, self.rows
        runtime.launch(weigh, runtime.grid(self.rows, _BLOCK), _BLOCK, *arguments)
        runtime.launch(sweep, chosen.size, _BLOCK, self.samples, self.arcs, lattice, output, which, with_gradient)

    def backwards(self, chosen: np.ndarray, gradients: list[Any]) -> None:
        """Gradients."""
        which = runtime.upload(Chosen(chosen, False))
        written = [runtime.rows_on_device(each.array, 3) for each in gradients]
        arguments = self.logits, written[0], written[-1], self.samples, self.arcs, self.lattice
        more = self.worths, self.output, which, self.task.coefficients, self.rows
        runtime.launch(slopes, runtime.grid(self.rows, _BLOCK), _BLOCK, *arguments, *more)


def _numbers(size: int) -> Any:
    shape = (max(size, 1),)
    return Numbers(runtime.Array(shape, np.float64), runtime.Array(shape, np.float64), runtime.Array(shape, np.int64))


def run(task: Task) -> np.ndarray:
    """−log P of each sample; gradients are written into the task's buffers."""
    from refloss.kernels.transducer.run import close_samples, finish_losses

    batch = task.logits.shape[0]
    if batch == 0:
        return np.empty(0)
    passes, everything = _Passes(task), np.ones(batch, bool)
    passes.forwards(everything, accurate=False, with_gradient=task.gradient is not None)
    losses = passes.losses.download()
    finish_losses(losses, passes.sound.download(), task.frames)
    passes.output = passes.output._replace(losses=runtime.Array.of(losses))
    if task.gradient is not None:
        buffers = [each for each in (task.gradient, task.duration_gradient) if each is not None]
        gradients = [runtime.Gradient(each) for each in buffers]
        passes.backwards(everything, gradients)
        again = np.zeros(batch, bool)
        again[close_samples(passes.close.download())] = True
        if again.any():
            passes.forwards(again, accurate=True, with_gradient=True)
            passes.backwards(again, gradients)
        for each in gradients:
            each.finish()
    return losses
