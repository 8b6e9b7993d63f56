"""A transducer's passes on the CPU: rows of logits, the lattice, rows of the gradient. Formulas are in lattice.

The first and the last pass go over frames, all of them on any thread; the lattice between them is one sample's, once
forwards and once backwards. What comes once a node is computed for LANES of them at a time, in scratch whose rows are
so long: a loop over a row has no end but that, so that it is vectorised without looking whether rows overlap.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.rows import load_rows, row_offset, save_rows
from refloss.kernels.softmax.refine import kept
from refloss.kernels.softmax.split import scan
from refloss.kernels.transducer.lattice import (
    Node,
    Numbers,
    accurate_counts,
    complement,
    duration_slope,
    joined,
    keep,
    keep_durations,
    keep_worths,
    load,
    loss_of,
    plain_bits,
    plain_counts,
    shift_of,
    slopes_of,
    wants_complement,
    weights,
)
from refloss.numerics.bits import float64_bits
from refloss.numerics.exponential import exp_difference
from refloss.numerics.extended import ONE, ZERO, add, multiply, product
from refloss.numerics.fetch import fetch
from refloss.numerics.formats import (
    from_ordinal,
    infinity_bits,
    lowest_ordinal,
    uncounted,
    widen,
)
from refloss.numerics.pairs import times
from refloss.numerics.sums import COARSE_MAGIC, FINE_MAGIC, grid_pair, long_total

# The samples and the times of some frames, one of each for a frame.
Frames = tuple[np.ndarray, np.ndarray]

LANES = 32
# From this many classes on, a vector of classes is well filled.
ROW_CLASSES = 16
# A row of up to so many classes is worked on in parts: a loop whose end is known takes a third less time, of so few.
SHORT_CLASSES, PART = 512, 32
# Diagonals between a frame's being asked for and its first use.
_AHEAD = 8
# Rows of float64 and of int64 that the passes use.
FLOAT_ROWS, INTEGER_ROWS = 28, 12


class Output(NamedTuple):
    """What samples and frames yield."""

    sound: Any  # [B, T] bool, of frames within a sample's length
    close: Any  # [B, T] bool, whether a gradient has too few digits
    losses: Any  # [B] float64
    totals: Numbers  # [B], P


class Buffers(NamedTuple):
    """One thread's rows of logits and of durations, float64, a number for each duration, and lanes."""

    rows: np.ndarray
    columns: np.ndarray  # as many
    durations: np.ndarray
    worths: Numbers
    floats: np.ndarray  # [FLOAT_ROWS·LANES]
    integers: np.ndarray  # [INTEGER_ROWS·LANES] int64


@jit.scalar
def _from(first, i, step=1):
    """An index without a sign: one that may be negative is looked at before each use, and no vector is read with it."""
    return np.uint64(first) + np.uint64(i) * np.uint64(step)


@jit.scalar
def _get(buffers, row, lane):
    """A number of a lane: two rows of floats, one of integers."""
    floats, at = buffers.floats, _from(row * LANES, lane)
    return floats[_from(at, row * LANES)], floats[_from(at, (row + 1) * LANES)], buffers.integers[at]


@jit.scalar
def _put(buffers, row, lane, value):
    at = _from(row * LANES, lane)
    buffers.floats[_from(at, row * LANES)] = value[0]
    buffers.floats[_from(at, (row + 1) * LANES)] = value[1]
    buffers.integers[at] = value[2]


class Line(NamedTuple):
    """Nodes (t − back·k, start + k) of a sample for lanes low ≤ k < high: of a frame, or of a diagonal."""

    first: int  # the sample's first node
    width: int
    frames: int
    t: int
    start: int
    low: int
    high: int
    back: int  # 0 or 1


@jit.scalar
def _node(line):
    """The node of lane 0, and how far it is to that of the next lane."""
    return line.first + line.t * line.width + line.start, 1 - line.back * line.width


@jit.scalar
def _copy_in(buffers, row, numbers, index, stride, low, high):
    """Numbers at index + k·stride into lanes k."""
    for lane in range(low, high):
        _put(buffers, row, lane, load(numbers, _from(index, lane, stride)))


@jit.scalar
def _copy_out(buffers, row, numbers, index, stride, low, high):
    for lane in range(low, high):
        keep(numbers, _from(index, lane, stride), _get(buffers, row, lane))


@jit.scalar
def _copy_all_in(buffers, row, numbers, index):
    """Numbers from an index on into all lanes, whoever they belong to: there are as many after the last node."""
    for lane in range(LANES):
        _put(buffers, row, lane, load(numbers, _from(index, lane)))


@jit.scalar
def _copy_first_out(buffers, row, numbers, index, count):
    """The first lanes; all of them by a loop whose end is known."""
    if count == LANES:
        _copy_out(buffers, row, numbers, index, 1, 0, LANES)
    else:
        _copy_out(buffers, row, numbers, index, 1, 0, count)


@jit.scalar
def _in_parts(size):
    """How many of a row's classes are in parts."""
    return size // PART * PART if size <= SHORT_CLASSES else 0


@jit.scalar
def _fetch_numbers(numbers, start, to_write):
    """Ask for some lanes' numbers. There are more arrays than a processor sees the next lines of by itself."""
    fetch(numbers.high, start, start + LANES, to_write)
    fetch(numbers.low, start, start + LANES, to_write)
    fetch(numbers.exponent, start, start + LANES, to_write)


@jit.scalar
def _fetch_weights(lattice, start):
    """Ask for the places of what some lanes' rows of logits give."""
    _fetch_numbers(lattice.blank, start, True)
    _fetch_numbers(lattice.label, start, True)
    _fetch_numbers(lattice.share, start, True)
    fetch(lattice.reference, start, start + LANES, True)
    fetch(lattice.others, start, start + LANES, True)
    fetch(lattice.others_low, start, start + LANES, True)


@jit.scalar
def _fetch_rows(rows, first, count):
    """Ask for rows, if they are short: of a long one a processor sees the next lines by itself."""
    if rows.class_stride == 1 and rows.classes <= SHORT_CLASSES:
        size = 8 if rows.format == 0 else (4 if rows.format == 1 else 2)
        start = row_offset(rows, first) * size
        fetch(rows.memory, start, start + count * rows.classes * size, False)


@jit.scalar
def _fill_lanes(buffers, row, value):
    for lane in range(LANES):
        _put(buffers, row, lane, value)


@jit.scalar
def _plain_part(rows, first, size, reference):
    coarse, fine = 0, 0
    for i in range(size):
        bits = plain_bits(rows[_from(first, i)], reference)
        coarse += bits[0]
        fine += bits[1]
    return coarse, fine


@jit.scalar
def _plain_sum(rows, first, size, reference):
    """Sums of the bits of e^(x − reference) on two grids, of a row."""
    coarse, fine = 0, 0
    whole = _in_parts(size)
    for at in range(0, whole, PART):
        bits = _plain_part(rows, first + at, PART, reference)
        coarse += bits[0]
        fine += bits[1]
    if whole < size:
        bits = _plain_part(rows, first + whole, size - whole, reference)
        coarse += bits[0]
        fine += bits[1]
    return coarse, fine


@jit.helper
def _accurate_sum(x, reference):
    coarse, fine, finest = 0, 0, 0
    for i in range(x.size):
        counts = accurate_counts(x[i], reference)
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
    return long_total(coarse, fine, finest)


# Rows of floats in which the weights of nodes are computed; their numbers follow.
_REFERENCE, _OTHERS, _OTHERS_LOW, _BLANK, _LABEL, _SAME = range(6)
_WEIGHTS = 3
# Then one that is NaN or +inf where a logit is, and sums as counts, of integers.
_OVERFLOW = 12
_COARSE, _FINE = range(2)


@jit.scalar
def _take_rows(rows, size, count, floats, lane, labels, blank, u, last):
    """Move what rows have at blank and label to their lanes, and find the largest of the others."""
    for i in range(count):
        first, at, label = i * size, lane + i, labels[_from(u, i)] if u + i < last else -1
        floats[_BLANK * LANES + at] = rows[_from(first, blank)]
        floats[_LABEL * LANES + at] = rows[_from(first, label)] if label >= 0 else -np.inf
        floats[_SAME * LANES + at] = 1.0 if label == blank else 0.0
        rows[_from(first, blank)] = -np.inf
        if label >= 0:
            rows[_from(first, label)] = -np.inf
    # In a loop of its own: a vector of what has just been written in parts would be waited for.
    for i in range(count):
        x, at = rows[i * size : (i + 1) * size], lane + i
        highest, largest = scan(x, lowest_ordinal(x), infinity_bits(x))
        reference = widen(from_ordinal(highest, x))
        floats[_REFERENCE * LANES + at] = reference
        floats[_OVERFLOW * LANES + at] = reference if largest == infinity_bits(x) else np.inf


@jit.scalar
def _finite(reference):
    return reference if reference > -np.inf else 0.0


@jit.helper
def _read_rows(rows, size, count, floats, integers, lane, labels, blank, u, last):
    """What some rows give to their lanes."""
    _take_rows(rows, size, count, floats, lane, labels, blank, u, last)
    for i in range(count):
        at = lane + i
        coarse, fine = _plain_sum(rows, i * size, size, _finite(floats[_REFERENCE * LANES + at]))
        integers[_COARSE * LANES + at] = coarse - size * float64_bits(COARSE_MAGIC)
        integers[_FINE * LANES + at] = fine - size * float64_bits(FINE_MAGIC)


@jit.helper
def _read_accurately(rows, size, count, floats, lane, labels, blank, u, last):
    """The same with sums that are good to some 2^-98, which are pairs at once."""
    _take_rows(rows, size, count, floats, lane, labels, blank, u, last)
    for i in range(count):
        x, at = rows[i * size : (i + 1) * size], lane + i
        total = _accurate_sum(x, _finite(floats[_REFERENCE * LANES + at]))
        floats[_OTHERS * LANES + at], floats[_OTHERS_LOW * LANES + at] = total


@jit.scalar
def _turn(rows, columns, size):
    """LANES rows, class by class."""
    for c in range(size):
        for lane in range(LANES):
            columns[c * LANES + lane] = rows[lane * size + c]


@jit.helper
def _take_out(buffers, samples, sample, start, count):
    """Move logits of blank and label out of columns; begin maxima and sums."""
    floats, integers, columns = buffers.floats, buffers.integers, buffers.columns
    blank, last = samples.blank, samples.counts[sample]
    for lane in range(LANES):
        floats[_REFERENCE * LANES + lane], floats[_OVERFLOW * LANES + lane] = -np.inf, 0.0
        integers[_COARSE * LANES + lane], integers[_FINE * LANES + lane] = 0, 0
    for lane in range(count):
        label = samples.labels[sample, start + lane] if start + lane < last else -1
        floats[_BLANK * LANES + lane] = columns[blank * LANES + lane]
        floats[_LABEL * LANES + lane] = columns[label * LANES + lane] if label >= 0 else -np.inf
        floats[_SAME * LANES + lane] = 1.0 if label == blank else 0.0
        columns[blank * LANES + lane] = -np.inf
        if label >= 0:
            columns[label * LANES + lane] = -np.inf


@jit.scalar
def _scan_columns(columns, floats, size):
    for c in range(size):
        for lane in range(LANES):
            x, highest, beyond = columns[c * LANES + lane], _REFERENCE * LANES + lane, _OVERFLOW * LANES + lane
            floats[highest] = x if x > floats[highest] else floats[highest]
            floats[beyond] = floats[beyond] if x < np.inf else np.inf


@jit.scalar
def _add_columns(columns, floats, integers, size):
    for c in range(size):
        for lane in range(LANES):
            reference = floats[_REFERENCE * LANES + lane]
            counts = plain_counts(columns[c * LANES + lane], _finite(reference))
            integers[_COARSE * LANES + lane] += counts[0]
            integers[_FINE * LANES + lane] += counts[1]


@jit.helper
def _read_columns(buffers, samples, sample, start, count, size):
    """_read_rows of up to LANES short rows, of which a class of all is added at a time."""
    _turn(buffers.rows, buffers.columns, size)
    _take_out(buffers, samples, sample, start, count)
    _scan_columns(buffers.columns, buffers.floats, size)
    _add_columns(buffers.columns, buffers.floats, buffers.integers, size)


@jit.scalar
def _are_sound(floats, count):
    """Whether all rows of some lanes have a softmax."""
    unsound = 0
    for lane in range(count):
        of_blank, of_label = floats[_BLANK * LANES + lane], floats[_LABEL * LANES + lane]
        sound = floats[_OVERFLOW * LANES + lane] < np.inf and of_blank < np.inf and of_label < np.inf
        sound &= max(floats[_REFERENCE * LANES + lane], of_blank, of_label) > -np.inf
        unsound += 0 if sound else 1
    return unsound == 0


@jit.scalar
def _total_lanes(floats, integers):
    """Sums of others as pairs."""
    for lane in range(LANES):
        total = grid_pair(integers[_COARSE * LANES + lane], integers[_FINE * LANES + lane])
        floats[_OTHERS * LANES + lane], floats[_OTHERS_LOW * LANES + lane] = total


@jit.helper
def _read_lanes(logits, samples, buffers, sample, row, start, lanes, accurate):
    """What the rows of some lanes give to them. Whether all are sound."""
    size, last, labels = logits.classes, samples.counts[sample], samples.labels[sample]
    floats, integers = buffers.floats, buffers.integers
    step = max(1, min(buffers.rows.size // size, LANES))
    for part in range(0, lanes, step):
        rows, u = min(step, lanes - part), start + part
        load_rows(logits, row + u, rows, buffers.rows)
        if accurate:
            _read_accurately(buffers.rows, size, rows, floats, part, labels, samples.blank, u, last)
        elif size < ROW_CLASSES and step == LANES:
            _read_columns(buffers, samples, sample, start, rows, size)
        else:
            _read_rows(buffers.rows, size, rows, floats, integers, part, labels, samples.blank, u, last)
    if not accurate:
        _total_lanes(floats, integers)
    return _are_sound(floats, lanes)


@jit.scalar
def _weights_of_lanes(buffers, accurate):
    floats = buffers.floats
    for lane in range(LANES):
        others = floats[_OTHERS * LANES + lane], floats[_OTHERS_LOW * LANES + lane]
        found = weights(
            floats[_REFERENCE * LANES + lane], others, floats[_BLANK * LANES + lane], floats[_LABEL * LANES + lane],
            floats[_SAME * LANES + lane] > 0.0, accurate,
        )  # fmt: skip
        _put(buffers, _WEIGHTS, lane, found[0])
        _put(buffers, _WEIGHTS + 1, lane, found[1])
        _put(buffers, _WEIGHTS + 2, lane, found[2])


@jit.scalar
def _keep_row(buffers, row, array, first, count):
    if count == LANES:
        for lane in range(LANES):
            array[_from(first, lane)] = buffers.floats[row * LANES + lane]
    else:
        for lane in range(count):
            array[_from(first, lane)] = buffers.floats[row * LANES + lane]


@jit.helper
def _keep_lanes(buffers, lattice, first, count):
    _copy_first_out(buffers, _WEIGHTS, lattice.blank, first, count)
    _copy_first_out(buffers, _WEIGHTS + 1, lattice.label, first, count)
    _copy_first_out(buffers, _WEIGHTS + 2, lattice.share, first, count)
    _keep_row(buffers, _REFERENCE, lattice.reference, first, count)
    _keep_row(buffers, _OTHERS, lattice.others, first, count)
    _keep_row(buffers, _OTHERS_LOW, lattice.others_low, first, count)


@jit.kernel
def weigh(logits, durations, samples, arcs, lattice, output, frames, buffers, accurate, first, last):
    """The rows of frames first ... last of some: what each node weighs."""
    logits, durations, samples, arcs = uncounted(logits), uncounted(durations), uncounted(samples), uncounted(arcs)
    lattice, output, frames, buffers = uncounted(lattice), uncounted(output), uncounted(frames), uncounted(buffers)
    width, times_of = samples.labels.shape[1] + 1, output.sound.shape[1]
    for k in range(first, last):
        sample, t = frames[0][k], frames[1][k]
        count, sound = samples.counts[sample] + 1, True
        row, node = (sample * times_of + t) * width, samples.first[sample] + t * count
        for start in range(0, count, LANES):
            lanes = min(LANES, count - start)
            _fetch_weights(lattice, node + start)
            _fetch_rows(logits, row + start + lanes, LANES)
            sound &= _read_lanes(logits, samples, buffers, sample, row, start, lanes, accurate)
            if accurate:
                _weights_of_lanes(buffers, True)
            else:
                _weights_of_lanes(buffers, False)
            _keep_lanes(buffers, lattice, node + start, lanes)
        if arcs.weighted:
            for u in range(count):
                load_rows(durations, row + u, 1, buffers.durations)
                sound &= keep_durations(lattice, node + u, buffers.durations, 0, 1, arcs.blanks.size, accurate)
        output.sound[sample, t] = sound


# Numbers of lanes in which some of the lattice is computed.
_SUM, _OTHER_SUM, _STAYING, _VALUE, _WEIGHT, _DURATION = range(6)


@jit.scalar
def _copy_durations(buffers, lattice, arcs, index, stride, i, low, high):
    steps = arcs.blanks.size
    _copy_in(buffers, _DURATION, lattice.durations, index * steps + i, stride * steps, low, high)


@jit.scalar
def _add_values(buffers, into):
    """Values times the durations' probabilities to a sum."""
    for lane in range(LANES):
        value = multiply(_get(buffers, _VALUE, lane), _get(buffers, _DURATION, lane))
        _put(buffers, into, lane, add(_get(buffers, into, lane), value))


@jit.scalar
def _staying_of_lanes(buffers, lattice, arcs, shift, index, stride, low, high):
    """lattice.staying of some nodes."""
    _copy_in(buffers, _WEIGHT, lattice.label, index, stride, low, high)
    _fill_lanes(buffers, _STAYING, ZERO)
    for i in range(arcs.labels.size):
        if arcs.labels[i] == 0:
            _copy_durations(buffers, lattice, arcs, index, stride, i, low, high)
            for lane in range(LANES):
                _put(buffers, _STAYING, lane, add(_get(buffers, _STAYING, lane), _get(buffers, _DURATION, lane)))
    for lane in range(LANES):
        value = multiply(multiply(_get(buffers, _WEIGHT, lane), shift), _get(buffers, _STAYING, lane))
        _put(buffers, _STAYING, lane, value)


@jit.scalar
def _pass_lanes(buffers, lattice, arcs, shift, weight, index, stride, i, low, high):
    """What comes from some nodes by an arc, added to the sum of lanes."""
    _fill_lanes(buffers, _VALUE, ZERO)
    _copy_in(buffers, _VALUE, lattice.alpha, index, stride, low, high)
    _copy_in(buffers, _WEIGHT, weight, index, stride, low, high)
    _copy_durations(buffers, lattice, arcs, index, stride, i, low, high)
    for lane in range(LANES):
        value = multiply(multiply(_get(buffers, _VALUE, lane), _get(buffers, _WEIGHT, lane)), shift)
        value = multiply(value, _get(buffers, _DURATION, lane))
        _put(buffers, _SUM, lane, add(_get(buffers, _SUM, lane), value))


@jit.scalar
def _join_lanes(buffers):
    """Values of nodes, from sums of what comes from other frames and from values beside them in their own."""
    for lane in range(LANES):
        value = joined(_get(buffers, _SUM, lane), _get(buffers, _STAYING, lane), _get(buffers, _VALUE, lane))
        _put(buffers, _SUM, lane, value)


@jit.scalar
def _forwards(buffers, lattice, arcs, shift, line):
    """α of some nodes."""
    node, stride = _node(line)
    written = max(line.low, 1 - line.start)
    _fill_lanes(buffers, _SUM, ZERO)
    if line.t == 0 and line.start == 0:
        _put(buffers, _SUM, 0, ONE)
    for i in range(arcs.blanks.size):
        step = arcs.blanks[i]
        if step > 0:
            high = min(line.high, line.t - step + 1)
            _pass_lanes(
                buffers, lattice, arcs, shift, lattice.blank, node - step * line.width, stride, i, line.low, high
            )
        step = arcs.labels[i]
        if step > 0:
            high = min(line.high, line.t - step + 1)
            source = node - step * line.width - 1
            _pass_lanes(buffers, lattice, arcs, shift, lattice.label, source, stride, i, written, high)
    _staying_of_lanes(buffers, lattice, arcs, shift, node - 1, stride, written, line.high)
    _fill_lanes(buffers, _VALUE, ZERO)
    _copy_in(buffers, _VALUE, lattice.alpha, node - 1, stride, written, line.high)
    _join_lanes(buffers)
    _copy_out(buffers, _SUM, lattice.alpha, node, stride, line.low, line.high)


@jit.scalar
def _within(line, step):
    """The first lane from which a step does not lead out of the frames."""
    if line.back == 0:
        return line.low if line.t + step < line.frames else line.high
    return max(line.low, line.t + step - line.frames + 1)


@jit.scalar
def _copy_next(buffers, row, lattice, step, line):
    """β where a blank leads to from some nodes."""
    node, stride = _node(line)
    _fill_lanes(buffers, row, ZERO)
    if step > 0:
        low = _within(line, step)
        _copy_in(buffers, row, lattice.beta, node + step * line.width, stride, low, line.high)
        last = line.width - 1 - line.start
        if line.low <= last < line.high and line.t - line.back * last + step == line.frames:
            _put(buffers, row, last, ONE)


@jit.scalar
def _copy_after_label(buffers, row, lattice, step, line):
    """β where a label leads to from some nodes."""
    node, stride = _node(line)
    _fill_lanes(buffers, row, ZERO)
    high = min(line.high, line.width - 1 - line.start)
    _copy_in(buffers, row, lattice.beta, node + step * line.width + 1, stride, _within(line, step), high)


@jit.scalar
def _behind_lanes(buffers, lattice, arcs, line, least):
    """X and Y of some nodes; of labels whose steps are no less."""
    node, stride = _node(line)
    _fill_lanes(buffers, _SUM, ZERO)
    _fill_lanes(buffers, _OTHER_SUM, ZERO)
    for i in range(arcs.blanks.size):
        _copy_durations(buffers, lattice, arcs, node, stride, i, line.low, line.high)
        _copy_next(buffers, _VALUE, lattice, arcs.blanks[i], line)
        _add_values(buffers, _SUM)
        if arcs.labels[i] >= least:
            _copy_after_label(buffers, _VALUE, lattice, arcs.labels[i], line)
            _add_values(buffers, _OTHER_SUM)


@jit.scalar
def _plain_behind(buffers, lattice, line):
    """X and Y of some nodes of a frame, if blanks read a frame and labels none."""
    node, last = _node(line)[0], line.width - 1 - line.start
    if line.t + 1 < line.frames:
        _copy_all_in(buffers, _SUM, lattice.beta, node + line.width)
    else:
        _fill_lanes(buffers, _SUM, ZERO)
        if last < LANES:
            _put(buffers, _SUM, last, ONE)
    _copy_all_in(buffers, _OTHER_SUM, lattice.beta, node + 1)
    if last < LANES:
        _put(buffers, _OTHER_SUM, last, ZERO)


@jit.scalar
def _backwards(buffers, lattice, arcs, shift, line):
    """β of some nodes."""
    node, stride = _node(line)
    _behind_lanes(buffers, lattice, arcs, line, 1)
    _copy_in(buffers, _VALUE, lattice.blank, node, stride, line.low, line.high)
    _copy_in(buffers, _WEIGHT, lattice.label, node, stride, line.low, line.high)
    for lane in range(LANES):
        of_labels = multiply(_get(buffers, _WEIGHT, lane), _get(buffers, _OTHER_SUM, lane))
        total = add(multiply(_get(buffers, _VALUE, lane), _get(buffers, _SUM, lane)), of_labels)
        _put(buffers, _SUM, lane, multiply(total, shift))
    _staying_of_lanes(buffers, lattice, arcs, shift, node, stride, line.low, line.high)
    _copy_after_label(buffers, _VALUE, lattice, 0, line)
    _join_lanes(buffers)
    _copy_out(buffers, _SUM, lattice.beta, node, stride, line.low, line.high)


@jit.scalar
def _diagonal(first, width, frames, t, start, lanes):
    """The nodes with one t + u of some columns, of which the first has reached a frame, or is beyond all."""
    return Line(first, width, frames, t, start, max(0, t - frames + 1), min(lanes, t + 1), 1)


@jit.scalar
def _copy_arcs(buffers, lattice, line):
    """Weights of blanks and labels of some nodes."""
    node, stride = _node(line)
    _copy_in(buffers, _VALUE, lattice.blank, node, stride, line.low, line.high)
    _copy_in(buffers, _WEIGHT, lattice.label, node, stride, line.low, line.high)


@jit.scalar
def _begin_columns(buffers):
    """Nothing comes from columns that have not begun."""
    for row in range(_DURATION + 1):
        _fill_lanes(buffers, row, ZERO)


@jit.helper
def _plain_forwards(buffers, lattice, first, width, frames, start):
    """α of some columns, if blanks read a frame and labels none: what leaves a diagonal arrives at the next."""
    lanes = min(LANES, width - start)
    _begin_columns(buffers)
    if start == 0:
        _put(buffers, _SUM, 0, ONE)
    for t in range(frames + lanes - 1):
        line = _diagonal(first, width, frames, t, start, lanes)
        node, stride = _node(line)
        ahead = node + _AHEAD * width
        _fetch_numbers(lattice.blank, ahead, False)
        _fetch_numbers(lattice.label, ahead, False)
        _fetch_numbers(lattice.alpha, ahead, True)
        if start > 0 and t < frames:
            _put(buffers, _STAYING, 0, product(load(lattice.label, node - 1), load(lattice.alpha, node - 1)))
        _copy_arcs(buffers, lattice, line)
        for lane in range(LANES):
            alpha = add(_get(buffers, _SUM, lane), _get(buffers, _STAYING, lane))
            _put(buffers, _DURATION, lane, alpha)
            _put(buffers, _SUM, lane, multiply(alpha, _get(buffers, _VALUE, lane)))
            _put(buffers, _OTHER_SUM, lane, product(_get(buffers, _WEIGHT, lane), alpha))
        for lane in range(LANES - 1):
            _put(buffers, _STAYING, lane + 1, _get(buffers, _OTHER_SUM, lane))
        _copy_out(buffers, _DURATION, lattice.alpha, node, stride, line.low, line.high)


@jit.helper
def _plain_backwards(buffers, lattice, first, width, frames, start):
    """β of some columns in the same way."""
    lanes = min(LANES, width - start)
    _begin_columns(buffers)
    if start + lanes == width:
        _put(buffers, _SUM, lanes - 1, ONE)
    for t in range(frames + lanes - 2, -1, -1):
        line = _diagonal(first, width, frames, t, start, lanes)
        node, stride = _node(line)
        ahead = node - (LANES + _AHEAD) * width
        _fetch_numbers(lattice.blank, ahead, False)
        _fetch_numbers(lattice.label, ahead, False)
        _fetch_numbers(lattice.beta, ahead, True)
        for lane in range(LANES - 1):
            _put(buffers, _STAYING, lane, _get(buffers, _SUM, lane + 1))
        if start + lanes < width and line.high == lanes:
            _put(buffers, _STAYING, lanes - 1, load(lattice.beta, node + (lanes - 1) * stride + 1))
        _copy_arcs(buffers, lattice, line)
        for lane in range(LANES):
            later = multiply(_get(buffers, _VALUE, lane), _get(buffers, _SUM, lane))
            beta = joined(later, _get(buffers, _WEIGHT, lane), _get(buffers, _STAYING, lane))
            _put(buffers, _SUM, lane, beta)
        _copy_out(buffers, _SUM, lattice.beta, node, stride, line.low, line.high)


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
def sweep(samples, arcs, lattice, output, buffers, forwards, of_losses, sample):
    """A sample's α, or β and its loss."""
    samples, arcs, lattice, output = uncounted(samples), uncounted(arcs), uncounted(lattice), uncounted(output)
    buffers = uncounted(buffers)
    first, width, frames = samples.first[sample], samples.counts[sample] + 1, samples.frames[sample]
    shift = shift_of(arcs)
    for strip in range(-(-width // LANES) if frames > 0 else 0):
        start = strip * LANES if forwards else (width - 1) // LANES * LANES - strip * LANES
        lanes = min(LANES, width - start)
        if not arcs.weighted:
            if forwards:
                _plain_forwards(buffers, lattice, first, width, frames, start)
            else:
                _plain_backwards(buffers, lattice, first, width, frames, start)
            continue
        diagonals = frames + lanes - 1
        for t in range(diagonals):
            if forwards:
                _forwards(buffers, lattice, arcs, shift, _diagonal(first, width, frames, t, start, lanes))
            else:
                last = diagonals - 1 - t
                _backwards(buffers, lattice, arcs, shift, _diagonal(first, width, frames, last, start, lanes))
    if forwards:
        return
    total = load(lattice.beta, first) if frames > 0 else ZERO
    keep(output.totals, sample, total)
    if of_losses:
        missed = ZERO
        distinct = samples.distinct[sample]
        if wants_complement(total, arcs, distinct):
            missed = _missed(lattice, arcs, shift, first, width, frames)
        output.losses[sample] = loss_of(total, missed, arcs, distinct)


@jit.scalar
def _fill_row(rows, first, size, value):
    for i in range(size):
        rows[_from(first, i)] = value


@jit.helper
def _fill(row, value):
    for i in range(row.size):
        row[i] = value


# Numbers of lanes from which gradients are computed, and rows of floats that hold them.
_ALPHA, _BETA, _OF_BLANK, _OF_LABEL, _SHARE, _PAIR = range(6, 12)
_FACTOR, _AT_BLANK, _AT_LABEL, _AT_ONE = 4, 6, 8, 10  # _STAYING and what follows it are free by then
_CLOSE, _IS_BLANK, _BESIDE, _VANISHES = range(24, 28)
# Below it numbers are 0 in every format but float64, and below the least positive number they are 0 in that, too.
_NOTHING = 2.0**-151
_LEAST_POSITIVE = 2.0**-1074


@jit.scalar
def _copy_node_lanes(buffers, lattice, samples, sample, node, start, count):
    _copy_all_in(buffers, _ALPHA, lattice.alpha, node)
    _copy_all_in(buffers, _BETA, lattice.beta, node)
    _copy_all_in(buffers, _OF_BLANK, lattice.blank, node)
    _copy_all_in(buffers, _OF_LABEL, lattice.label, node)
    _copy_all_in(buffers, _SHARE, lattice.share, node)
    for lane in range(LANES):
        at = _from(node, lane)
        _put(buffers, _PAIR, lane, (lattice.others[at], lattice.others_low[at], 0))
    for lane in range(LANES):
        buffers.floats[_BESIDE * LANES + lane] = lattice.reference[_from(node, lane)]
    last = samples.counts[sample]
    for lane in range(count):
        label = samples.labels[sample, start + lane] if start + lane < last else -1
        buffers.floats[_IS_BLANK * LANES + lane] = 1.0 if label == samples.blank else 0.0


@jit.scalar
def _slopes_of_lanes(buffers, probability, shift, coefficient, wide):
    floats = buffers.floats
    for lane in range(LANES):
        pair = _get(buffers, _PAIR, lane)
        node = Node(
            _get(buffers, _ALPHA, lane), _get(buffers, _BETA, lane), _get(buffers, _OF_BLANK, lane),
            _get(buffers, _OF_LABEL, lane), _get(buffers, _SHARE, lane), _get(buffers, _SUM, lane),
            _get(buffers, _OTHER_SUM, lane), (pair[0], pair[1]),
        )  # fmt: skip
        found = slopes_of(node, probability, shift, coefficient, floats[_IS_BLANK * LANES + lane] > 0.0)
        floats[_FACTOR * LANES + lane], floats[(_FACTOR + 1) * LANES + lane] = found.factor
        floats[_AT_ONE * LANES + lane] = kept(found.factor, wide)
        floats[_AT_BLANK * LANES + lane] = kept(found.blank, wide)
        floats[_AT_LABEL * LANES + lane] = kept(found.label, wide)
        floats[_CLOSE * LANES + lane] = 1.0 if found.close else 0.0
        # By bits: a factor of −0 leaves zeros of its sign.
        bits, limit = float64_bits(found.factor[0]), float64_bits(_LEAST_POSITIVE if wide else _NOTHING)
        vanishes = (bits >= 0 and bits < limit) or floats[_BESIDE * LANES + lane] == -np.inf
        floats[_VANISHES * LANES + lane] = 1.0 if vanishes else 0.0


@jit.scalar
def _store_part(rows, first, size, reference, factor, at_one):
    for i in range(size):
        at = _from(first, i)
        term = exp_difference(rows[at], reference)
        rows[at] = at_one if term == 1.0 else times(term, factor)


@jit.scalar
def _store_others(rows, first, size, reference, factor, at_one):
    """e^(x − reference) times a factor, in place of x, of a row."""
    whole = _in_parts(size)
    for at in range(0, whole, PART):
        _store_part(rows, first + at, PART, reference, factor, at_one)
    if whole < size:
        _store_part(rows, first + whole, size - whole, reference, factor, at_one)


@jit.scalar
def _left(floats, lane, count):
    """The first and the last of some lanes whose gradients are not 0 but for blanks and labels; none is [0, 0)."""
    first, last = 0, 0
    for i in range(count):
        if not floats[_VANISHES * LANES + lane + i] > 0.0:
            first = i if last == 0 else first
            last = i + 1
    return first, last


@jit.helper
def _store_rows(rows, size, count, floats, lane, samples, sample, u):
    """Gradients in place of the logits of some lanes' rows; whether one is close to 0."""
    labels, last, close = samples.labels[sample], samples.counts[sample], False
    for i in range(count):
        first, at = i * size, lane + i
        if floats[_VANISHES * LANES + at] > 0.0:
            _fill_row(rows, first, size, 0.0)
        else:
            factor = floats[_FACTOR * LANES + at], floats[(_FACTOR + 1) * LANES + at]
            _store_others(rows, first, size, floats[_BESIDE * LANES + at], factor, floats[_AT_ONE * LANES + at])
        rows[_from(first, samples.blank)] = floats[_AT_BLANK * LANES + at]
        if u + i < last:
            rows[_from(first, labels[u + i])] = floats[_AT_LABEL * LANES + at]
        close |= floats[_CLOSE * LANES + at] > 0.0
    return close


@jit.helper
def _slopes_of_rows(logits, gradient, samples, buffers, sample, row, start, inside, known):
    """The gradients of some lanes' rows, of which those beyond some are outside; whether one is close to 0."""
    size, width, close = logits.classes, samples.labels.shape[1] + 1, False
    step = max(1, min(buffers.rows.size // size, LANES))
    for u in range(start, min(start + LANES, width), step):
        rows, lane = min(step, start + LANES - u, width - u), u - start
        count = max(0, min(rows, inside - u))
        if known:
            # Few paths pass most nodes: what is 0 whatever the logits are is not computed from them.
            first, after = _left(buffers.floats, lane, count)
            if first < after:
                load_rows(logits, row + u + first, after - first, buffers.rows[first * size :])
            close |= _store_rows(buffers.rows, size, count, buffers.floats, lane, samples, sample, u)
        else:
            _fill(buffers.rows[: count * size], np.nan)
        _fill(buffers.rows[count * size : rows * size], 0.0)
        save_rows(buffers.rows, gradient, row + u, rows)
    return close


@jit.helper
def _slopes_of_durations(of_durations, arcs, lattice, buffers, total, shift, coefficient, row, place, t, known, wide):
    """The gradients of a frame's durations; place is where its sample's nodes begin, and how many there are."""
    first, inside, length, width = place
    close = False
    for u in range(width):
        if u >= inside or not known:
            _fill(buffers.durations, 0.0 if u >= inside else np.nan)
        else:
            mean = keep_worths(buffers.worths, 0, lattice, arcs, first, inside, length, t, u)
            for i in range(arcs.blanks.size):
                value, is_close = duration_slope(
                    buffers.worths, 0, mean, lattice, arcs, total, shift, coefficient, first + t * inside + u, i
                )
                buffers.durations[i] = kept(value, wide)
                close |= is_close
        save_rows(buffers.durations, of_durations, row + u, 1)
    return close


@jit.kernel
def slopes(
    logits, durations, gradient, of_durations, samples, arcs, lattice, output, frames, buffers, coefficients, wide,
    first, last,
):  # fmt: skip
    """The gradients of frames first ... last of some."""
    logits, durations, samples, arcs = uncounted(logits), uncounted(durations), uncounted(samples), uncounted(arcs)
    lattice, output, frames, buffers = uncounted(lattice), uncounted(output), uncounted(frames), uncounted(buffers)
    gradient, of_durations, coefficients = uncounted(gradient), uncounted(of_durations), uncounted(coefficients)
    width, times_of, shift = samples.labels.shape[1] + 1, output.sound.shape[1], shift_of(arcs)
    for k in range(first, last):
        sample, t = frames[0][k], frames[1][k]
        inside = samples.counts[sample] + 1 if t < samples.frames[sample] else 0
        row, total = (sample * times_of + t) * width, load(output.totals, sample)
        origin, length = samples.first[sample], samples.frames[sample]
        known = total[0] > 0.0 and output.losses[sample] == output.losses[sample]
        coefficient, close = (coefficients[sample, 0], coefficients[sample, 1]), False
        for start in range(0, width, LANES):
            lanes = min(LANES, inside - start)
            if known and lanes > 0:
                line = Line(origin, inside, length, t, start, 0, lanes, 0)
                if arcs.weighted:
                    _behind_lanes(buffers, lattice, arcs, line, 0)
                else:
                    _plain_behind(buffers, lattice, line)
                _copy_node_lanes(buffers, lattice, samples, sample, origin + t * inside + start, start, lanes)
                _slopes_of_lanes(buffers, total, shift, coefficient, wide[0])
            close |= _slopes_of_rows(logits, gradient, samples, buffers, sample, row, start, inside, known)
        if arcs.weighted:
            place = origin, inside, length, width
            close |= _slopes_of_durations(
                of_durations, arcs, lattice, buffers, total, shift, coefficient, row, place, t, known, wide[1]
            )
        output.close[sample, t] = close
