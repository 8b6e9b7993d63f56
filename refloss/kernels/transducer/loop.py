"""A transducer's passes on the CPU: rows of logits, the lattice, and rows of the gradient. See lattice for the formulas.

The first and the last pass go over frames, all of them on any thread; the lattice between them is one sample's, once
forwards and once backwards.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_rows, save_rows
from refloss.kernels.softmax.refine import kept
from refloss.kernels.softmax.split import scan
from refloss.kernels.transducer.lattice import (
    Numbers,
    accurate_counts,
    backward,
    complement,
    duration_slope,
    forward,
    keep,
    keep_durations,
    keep_weights,
    keep_worths,
    load,
    loss_of,
    plain_counts,
    shift_of,
    slopes_of,
    wants_complement,
)
from refloss.numerics.exponential import exp_difference
from refloss.numerics.extended import LEAST, ZERO
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal, uncounted, widen
from refloss.numerics.pairs import times
from refloss.numerics.sums import grid_total

# The samples and the times of some frames, one of each for a frame.
Frames = tuple[np.ndarray, np.ndarray]


class Output(NamedTuple):
    """What samples and frames yield."""

    sound: Any  # [B, T] bool, of frames within a sample's length
    close: Any  # [B, T] bool, whether a gradient has too few digits
    losses: Any  # [B] float64
    totals: Numbers  # [B], P


class Buffers(NamedTuple):
    """One thread's rows of logits and of durations, float64, and a number for each duration."""

    rows: np.ndarray
    durations: np.ndarray
    worths: Numbers


@jit.scalar
def _plain_sum(x, reference):
    coarse, fine = 0, 0
    for i in range(x.size):
        counts = plain_counts(x[i], reference)
        coarse += counts[0]
        fine += counts[1]
    return coarse, fine


@jit.scalar
def _accurate_sum(x, reference):
    coarse, fine = 0, 0
    for i in range(x.size):
        counts = accurate_counts(x[i], reference)
        coarse += counts[0]
        fine += counts[1]
    return coarse, fine


@jit.helper
def _weigh_row(lattice, node, x, blank, label, accurate):
    """A row's part of the lattice; it loses what it has at blank and label. Whether it is sound."""
    of_blank = x[blank]
    of_label = x[label] if label >= 0 else -np.inf
    x[blank] = -np.inf
    if label >= 0:
        x[label] = -np.inf
    highest, largest = scan(x, lowest_ordinal(x), infinity_bits(x))
    reference = widen(from_ordinal(highest, x))
    if not (largest == infinity_bits(x) and reference < np.inf and of_blank < np.inf and of_label < np.inf):
        return False
    if max(reference, of_blank, of_label) == -np.inf:
        return False
    others = 0.0, 0.0
    if reference > -np.inf:
        bits = _accurate_sum(x, reference) if accurate else _plain_sum(x, reference)
        others = grid_total(bits[0], bits[1], x.size)
    keep_weights(lattice, node, reference, others, of_blank, of_label, label >= 0, label == blank)
    return True


@jit.kernel
def weigh(logits, durations, samples, arcs, lattice, output, frames, buffers, accurate, first, last):
    """The rows of frames first ... last of some: what each node weighs."""
    logits, durations, samples, arcs = uncounted(logits), uncounted(durations), uncounted(samples), uncounted(arcs)
    lattice, output, frames, buffers = uncounted(lattice), uncounted(output), uncounted(frames), uncounted(buffers)
    size, width, times_of = logits.classes, samples.labels.shape[1] + 1, output.sound.shape[1]
    step = max(1, buffers.rows.size // size)
    for k in range(first, last):
        sample, t = frames[0][k], frames[1][k]
        count, sound = samples.counts[sample] + 1, True
        row, node = (sample * times_of + t) * width, samples.first[sample] + t * (samples.counts[sample] + 1)
        for start in range(0, count, step):
            part = min(step, count - start)
            load_rows(logits, row + start, part, buffers.rows)
            for i in range(part):
                u = start + i
                label = samples.labels[sample, u] if u < count - 1 else -1
                x = buffers.rows[i * size : (i + 1) * size]
                sound &= _weigh_row(lattice, node + u, x, samples.blank, label, accurate)
        if arcs.weighted:
            of_durations = arcs.blanks.size
            for u in range(count):
                load_rows(durations, row + u, 1, buffers.durations)
                sound &= keep_durations(lattice, node + u, buffers.durations, 0, 1, of_durations)
        output.sound[sample, t] = sound


@jit.helper
def _sweep_forwards(lattice, arcs, shift, first, width, frames):
    for t in range(frames):
        for u in range(width):
            keep(lattice.alpha, first + t * width + u, forward(lattice, arcs, shift, first, width, t, u))


@jit.helper
def _sweep_backwards(lattice, arcs, shift, first, width, frames):
    for t in range(frames - 1, -1, -1):
        for u in range(width - 1, -1, -1):
            keep(lattice.beta, first + t * width + u, backward(lattice, arcs, shift, first, width, frames, t, u))


@jit.helper
def _missed(lattice, arcs, shift, first, width, frames):
    """1 − P."""
    size = frames * width
    missed = Numbers(np.empty(size), np.empty(size), np.empty(size, np.int64))
    for t in range(frames - 1, -1, -1):
        for u in range(width - 1, -1, -1):
            value = complement(lattice, arcs, shift, missed, 0, first, width, frames, t, u)
            keep(missed, t * width + u, value)
    return load(missed, 0)


@jit.kernel
def sweep(samples, arcs, lattice, output, forwards, of_losses, sample):
    """A sample's α, or β and its loss."""
    samples, arcs, lattice, output = uncounted(samples), uncounted(arcs), uncounted(lattice), uncounted(output)
    first, width, frames = samples.first[sample], samples.counts[sample] + 1, samples.frames[sample]
    shift = shift_of(arcs)
    if forwards:
        _sweep_forwards(lattice, arcs, shift, first, width, frames)
        return
    total = ZERO
    if frames > 0:
        _sweep_backwards(lattice, arcs, shift, first, width, frames)
        total = load(lattice.beta, first)
    keep(output.totals, sample, total)
    if of_losses:
        missed = ZERO
        if wants_complement(total, arcs):
            missed = _missed(lattice, arcs, shift, first, width, frames)
        output.losses[sample] = loss_of(total, missed, arcs)


@jit.helper
def _fill(row, value):
    for i in range(row.size):
        row[i] = value


@jit.scalar
def _store_others(x, reference, factor, at_one):
    """e^(x − reference) times a factor, in place of x."""
    for i in range(x.size):
        term = exp_difference(x[i], reference)
        x[i] = at_one if term == 1.0 else times(term, factor)


@jit.helper
def _store_row(x, reference, slopes, blank, label, wide):
    """A row's gradient in place of its logits."""
    if reference == -np.inf:
        _fill(x, 0.0)
    else:
        _store_others(x, reference, slopes.factor, kept(slopes.factor, wide))
    x[blank] = kept(slopes.blank, wide)
    if label >= 0:
        x[label] = kept(slopes.label, wide)


@jit.kernel
def slopes(
    logits, durations, gradient, of_durations, samples, arcs, lattice, output, frames, buffers, coefficients, wide,
    first, last,
):  # fmt: skip
    """The gradients of frames first ... last of some."""
    logits, durations, samples, arcs = uncounted(logits), uncounted(durations), uncounted(samples), uncounted(arcs)
    lattice, output, frames, buffers = uncounted(lattice), uncounted(output), uncounted(frames), uncounted(buffers)
    gradient, of_durations, coefficients = uncounted(gradient), uncounted(of_durations), uncounted(coefficients)
    size, width, times_of = logits.classes, samples.labels.shape[1] + 1, output.sound.shape[1]
    step, steps, shift = max(1, buffers.rows.size // size), arcs.blanks.size, shift_of(arcs)
    for k in range(first, last):
        sample, t = frames[0][k], frames[1][k]
        inside = samples.counts[sample] + 1 if t < samples.frames[sample] else 0
        row, total = (sample * times_of + t) * width, load(output.totals, sample)
        origin, length = samples.first[sample], samples.frames[sample]
        known = total[0] > 0.0 and output.losses[sample] == output.losses[sample]
        coefficient, close = (coefficients[sample, 0], coefficients[sample, 1]), False
        for start in range(0, width, step):
            part = min(step, width - start)
            load_rows(logits, row + start, min(part, max(0, inside - start)), buffers.rows)
            for i in range(part):
                u = start + i
                x = buffers.rows[i * size : (i + 1) * size]
                if u >= inside or not known:
                    _fill(x, 0.0 if u >= inside else np.nan)
                    continue
                label = samples.labels[sample, u] if u < inside - 1 else -1
                found = slopes_of(
                    lattice, arcs, total, shift, coefficient, origin, inside, length, t, u, label == samples.blank
                )
                close |= found.close
                _store_row(x, lattice.reference[origin + t * inside + u], found, samples.blank, label, wide[0])
            save_rows(buffers.rows, gradient, row + start, part)
        for u in range(width if arcs.weighted else 0):
            if u >= inside or not known:
                _fill(buffers.durations, 0.0 if u >= inside else np.nan)
            else:
                mean = keep_worths(buffers.worths, 0, lattice, arcs, origin, inside, length, t, u)
                for i in range(steps):
                    value, is_close = duration_slope(
                        buffers.worths, 0, mean, lattice, arcs, total, shift, coefficient, origin + t * inside + u, i
                    )
                    buffers.durations[i] = kept(value, wide[1])
                    close |= is_close
            save_rows(buffers.durations, of_durations, row + u, 1)
        output.close[sample, t] = close
