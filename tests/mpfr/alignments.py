"""CTC: the recursion over states in MPFR, and inputs on which its gradient is hard to round."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO
from tests.mpfr.elements import COTANGENTS, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals


class Sequences(NamedTuple):
    """A call: logits or log-probabilities [N, T, C], a list of labels for each of N, lengths and a cotangent."""

    values: np.ndarray
    targets: list[list[int]]
    frames: list[int]
    blank: int = 0
    cotangent: float = 1.0
    reduction: str = "sum"


class Truth(NamedTuple):
    """−log of the probability of all alignments, and p − γ [T][C]."""

    loss: Real
    gradient: list[list[Real]]


def truth(values: np.ndarray, labels: list[int], blank: int, *, is_softmax: bool) -> Truth:
    """Of one sequence [T, C]; no frames, no gradient."""
    probabilities = [[gmpy2.exp(x) for x in reals(row)] for row in values]
    if is_softmax:
        probabilities = [[p / gmpy2.fsum(row) for p in row] for row in probabilities]
    states = [blank if s % 2 == 0 else labels[s // 2] for s in range(2 * len(labels) + 1)]
    skips = [s % 2 == 1 and s > 1 and states[s] != states[s - 2] for s in range(len(states))]
    before = _forward(probabilities, states, skips)
    # The same from the other end: states and frames in reverse; a skip is one of the state that it comes from.
    backwards = [skips[s + 2] if s + 2 < len(states) else False for s in range(len(states))][::-1]
    after = [row[::-1] for row in _forward(probabilities[::-1], states[::-1], backwards)[::-1]]
    if not before:
        return Truth(-gmpy2.log(ONE if len(states) == 1 else ZERO), [])
    total = gmpy2.fsum(before[-1][-2:])
    gradient = []
    for p, alpha, beta in zip(probabilities, before, after, strict=True):
        row = list(p)
        for s, label in enumerate(states):
            if p[label] != 0:  # both have the frame's own
                row[label] -= alpha[s] * beta[s] / p[label] / total
        gradient.append(row)
    return Truth(-gmpy2.log(total), gradient)


def _forward(probabilities: list[list[Real]], states: list[int], skips: list[bool]) -> list[list[Real]]:
    """All that begins in one of the first two states, up to and with each frame and state."""
    rows: list[list[Real]] = []
    for p in probabilities:
        row = []
        for s, label in enumerate(states):
            if not rows:
                arrived = ONE if s < 2 else ZERO
            else:
                last = rows[-1]
                arrived = last[s] + (last[s - 1] if s else ZERO) + (last[s - 2] if skips[s] else ZERO)
            row.append(arrived * p[label])
        rows.append(row)
    return rows


def compare(call: Callable[..., Any], name: str, sequences: Sequences, *, is_softmax: bool) -> Iterator[Comparison]:
    """A call's gradients in every format, and its loss, against the recursion; gradients are [N, T, C]."""
    with gmpy2.context(precision=PRECISION):
        c, size = real(sequences.cotangent), sequences.values.shape
        losses, gradient = [], []
        for values, labels, frames in zip(sequences.values, sequences.targets, sequences.frames, strict=True):
            true = truth(values[:frames], labels, sequences.blank, is_softmax=is_softmax)
            by = max(len(labels), 1) * size[0] if sequences.reduction == "mean" else 1
            losses.append(true.loss / by)
            gradient += [c / by * slope for row in true.gradient for slope in row]
            gradient += [ZERO] * ((size[1] - frames) * size[2])
        for format_name, dtype in DTYPES.items():
            result = call(grad_dtype=dtype)
            got = result.grads[name] if name == "logits" else result.grads[name].transpose(1, 0, 2)
            yield Comparison(
                name, format_name, np.ascontiguousarray(got), exact(gradient, size), _describing(sequences)
            )
        loss = np.asarray([result.loss])
        yield Comparison("loss", "float64", loss, exact([gmpy2.fsum(losses)], (1,)), _describing(sequences))


def _describing(sequences: Sequences) -> Callable[[int], str]:
    def describe(index: int) -> str:
        n, t, k = (int(i) for i in np.unravel_index(index, sequences.values.shape))
        return f"sequence {n}, frame {t}, class {k} of {sequences.values.shape}"

    return describe


def ctc(sequences: Sequences) -> Iterator[Comparison]:
    """refloss.ctc, of what is taken for log-probabilities."""
    lengths = [len(labels) for labels in sequences.targets]
    flat = np.array([label for labels in sequences.targets for label in labels], np.int64)

    def call(**options: Any) -> Any:
        keywords: dict[str, Any] = {
            "blank": sequences.blank,
            "reduction": sequences.reduction,
            "grad_output": sequences.cotangent,
        }
        values = sequences.values.transpose(1, 0, 2)
        return refloss.ctc(values, flat, sequences.frames, lengths, **keywords, **options)

    return compare(call, "log_probs", sequences, is_softmax=False)


def ctc_of_logits(sequences: Sequences) -> Iterator[Comparison]:
    """refloss.ctc_of_logits."""
    labels = np.full((len(sequences.targets), max(map(len, sequences.targets))), -100)
    for row, own in zip(labels, sequences.targets, strict=True):
        row[: len(own)] = own

    def call(**options: Any) -> Any:
        keywords: dict[str, Any] = {"reduction": sequences.reduction, "grad_output": sequences.cotangent}
        return refloss.ctc_of_logits(sequences.values, labels, sequences.frames, sequences.blank, **keywords, **options)

    return compare(call, "logits", sequences, is_softmax=True)


# What is drawn, as many elements as are asked for.

Draw = Callable[[np.random.Generator, int], Iterator[Sequences]]
_SHAPES = ((12, 3), (20, 6), (30, 33))


def normalised(values: np.ndarray) -> np.ndarray:
    """log_softmax in float64."""
    shifted = values - values.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _labels(generator: np.random.Generator, classes: int, frames: int) -> list[int]:
    """A target with alignments, and labels that come twice."""
    labels = generator.integers(1, classes, generator.integers(frames // 3 + 1)).tolist()
    repeated = sum(a == b for a, b in itertools.pairwise(labels))
    return labels if len(labels) + repeated <= frames else labels[: frames // 2]


def _drawn(
    generator: np.random.Generator, size: int, scales: tuple[float, ...], dtype: Any = np.float32
) -> Iterator[Sequences]:
    """Sequences of some shapes, logits of some scales."""
    each = max(1, size // (len(_SHAPES) * len(scales)))
    for frames, classes in _SHAPES:
        for scale in scales:
            count = max(1, each // (frames * classes))
            values = generator.standard_normal((count, frames, classes)) * scale
            lengths = generator.integers(frames // 2, frames + 1, count).tolist()
            targets = [_labels(generator, classes, length) for length in lengths]
            cotangent = float(generator.choice(COTANGENTS))
            reduction = str(generator.choice(["sum", "mean"]))
            yield Sequences(values.astype(dtype), targets, lengths, 0, cotangent, reduction)


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Sequences]:
    """Undecided and decided frames."""
    return _drawn(generator, size, (0.5, 3.0, 10.0))


def far(generator: np.random.Generator, size: int) -> Iterator[Sequences]:
    """Frames that are sure, mostly of the wrong class."""
    return _drawn(generator, size, (40.0, 300.0))


def aligned(generator: np.random.Generator, size: int) -> Iterator[Sequences]:
    """Frames that are sure of an alignment of the target."""
    for margin in (4.0, 10.0, 20.0):
        for own in _drawn(generator, size // 3, (1.0,)):
            values = own.values.astype(np.float64)
            for n, (labels, frames) in enumerate(zip(own.targets, own.frames, strict=True)):
                path = [s for label in labels for s in (label, 0)]
                path = (path + [0] * frames)[:frames] if len(path) <= frames else path[::2] + [0] * frames
                values[n, np.arange(frames), path[:frames]] += margin
            yield own._replace(values=values.astype(np.float32))


def equal(generator: np.random.Generator, size: int) -> Iterator[Sequences]:
    """Frames whose classes are alike: probabilities and shares are quotients of integers, differences may be 0."""
    for own in _drawn(generator, size, (1.0, 1.0)):
        yield own._replace(values=np.zeros_like(own.values) - np.float32(1.0))


def masked(generator: np.random.Generator, size: int) -> Iterator[Sequences]:
    """A class that no label asks for is −inf, and in some frames all labels are but one and the blank."""
    for own in _drawn(generator, size, (3.0,)):
        values = own.values.copy()
        values[:, :, -1] = -np.inf
        values[:, 1, 2:] = -np.inf
        targets = [[min(label, values.shape[-1] - 2) for label in labels] for labels in own.targets]
        targets = [labels if len(set(labels)) == len(labels) else labels[: len(labels) // 2] for labels in targets]
        yield own._replace(values=values, targets=targets)


def formats(generator: np.random.Generator, size: int) -> Iterator[Sequences]:
    """Logits of every format."""
    for dtype in (*INPUT_DTYPES, ml_dtypes.bfloat16):
        yield from _drawn(generator, size // 5, (4.0,), dtype)


def _normalised_first(draw: Draw) -> Draw:
    def normalised_draws(generator: np.random.Generator, size: int) -> Iterator[Sequences]:
        for own in draw(generator, size):
            with np.errstate(invalid="ignore"):
                values = normalised(own.values.astype(np.float64))
            yield own._replace(values=values.astype(own.values.dtype))

    return normalised_draws


LOGITS: dict[str, Draw] = {
    "ordinary": ordinary,
    "far": far,
    "aligned": aligned,
    "equal": equal,
    "masked": masked,
    "formats": formats,
}
LOG_PROBABILITIES: dict[str, Draw] = {
    **{kind: _normalised_first(draw) for kind, draw in LOGITS.items()},
    "not normalised": ordinary,
}
