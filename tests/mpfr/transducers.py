"""Transducers: sums over the paths of a lattice, and the rows on which their gradients are hard to round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

BLANK = 0
DURATIONS = ((0, 1, 2, 3, 4), (1, 2), (0, 2), (2, 0, 1, 1), (1,))


class Lattices(NamedTuple):
    """A call: logits [B, T, U + 1, V], labels and lengths; durations' logits and steps, of an RNN-T none."""

    logits: np.ndarray
    labels: np.ndarray
    frames: np.ndarray
    counts: np.ndarray
    cotangent: Any = 1.0
    reduction: str = "sum"
    durations: np.ndarray | None = None
    steps: tuple[int, ...] = ()
    sigma: float = 0.0


class Row(NamedTuple):
    """A row's probabilities, and what its gradient has so far."""

    p: list[Real]
    gradient: list[Real]


Arc = tuple[int, int, int, int]  # frames and labels further, the class, the duration


def _row(logits: np.ndarray) -> Row:
    x = reals(logits)
    largest = max(x)
    terms = [gmpy2.exp(value - largest) for value in x]
    total = gmpy2.fsum(terms)
    return Row([term / total for term in terms], [ZERO] * len(x))


def _arcs(given: Lattices, b: int, u: int) -> list[Arc]:
    label = int(given.labels[b, u]) if u < given.counts[b] else None
    if given.durations is None:
        return [(1, 0, BLANK, -1)] + ([] if label is None else [(0, 1, label, -1)])
    blanks = [(step, 0, BLANK, i) for i, step in enumerate(given.steps) if step > 0]
    return blanks + [(step, 1, label, i) for i, step in enumerate(given.steps) if label is not None]


class _Sample:
    """One sample's rows, and its sums over paths."""

    def __init__(self, given: Lattices, b: int) -> None:
        self.given, self.b = given, b
        self.end = int(given.frames[b]), int(given.counts[b])
        places = [(t, u) for t in range(self.end[0]) for u in range(self.end[1] + 1)]
        self.rows = {(t, u): _row(given.logits[b, t, u]) for t, u in places}
        self.of_durations = {}
        if given.durations is not None:
            self.of_durations = {(t, u): _row(given.durations[b, t, u]) for t, u in places}
        self.shift = gmpy2.exp(-real(given.sigma))
        self.behind = {self.end: ONE}
        for place in reversed(places):
            arcs = _arcs(given, b, place[1])
            self.behind[place] = gmpy2.fsum([self.weight(place, arc) * self.after(place, arc) for arc in arcs])
        self.total = self.behind[0, 0]

    def weight(self, place: tuple[int, int], arc: Arc) -> Real:
        """Of an arc."""
        p = self.rows[place].p[arc[2]]
        return p * self.of_durations[place].p[arc[3]] * self.shift if self.of_durations else p

    def after(self, place: tuple[int, int], arc: Arc) -> Real:
        """The probability of ending from where an arc leads to."""
        to = place[0] + arc[0], place[1] + arc[1]
        return ZERO if arc[1] and to[0] == self.end[0] else self.behind.get(to, ZERO)

    def differentiate(self, coefficient: Real) -> None:
        """Into the rows' gradients."""
        ahead = {(0, 0): ONE}
        for place, row in self.rows.items():
            here = ahead.get(place, ZERO)
            for arc in _arcs(self.given, self.b, place[1]):
                to = place[0] + arc[0], place[1] + arc[1]
                ahead[to] = ahead.get(to, ZERO) + here * self.weight(place, arc)
                share = coefficient * here * self.weight(place, arc) * self.after(place, arc) / self.total
                for own, taken in ((row, arc[2]), (self.of_durations.get(place), arc[3])):
                    if own is not None:
                        for k, p in enumerate(own.p):
                            own.gradient[k] += share * (p - 1 if k == taken else p)


def _over(given: Lattices) -> list[Real]:
    counts = np.maximum(given.counts, 1)
    batch = len(counts)
    over = {
        "mean_volume": [max(int(given.counts.sum()), 1)] * batch,
        "mean_batch": [batch] * batch,
        "mean": [batch * int(count) for count in counts],
    }
    return [real(each) for each in over.get(given.reduction, [1] * batch)]


def compare(given: Lattices) -> Iterator[Comparison]:
    """refloss's gradients in every format, and its loss."""
    with gmpy2.context(precision=PRECISION):
        cotangents = reals(np.broadcast_to(given.cotangent, len(given.logits)))
        samples, over = [_Sample(given, b) for b in range(len(given.logits))], _over(given)
        for sample, c, divisor in zip(samples, cotangents, over, strict=True):
            sample.differentiate(c / divisor)
        nll = [-gmpy2.log(sample.total) for sample in samples]
        names = ("logits",) if given.durations is None else ("token_logits", "duration_logits")
        for dtype in DTYPES.values():
            result = _call(given, grad_dtype=dtype)
            for name, of_durations in zip(names, (False, True), strict=False):
                got = result.grads[name]
                rows = [sample.of_durations if of_durations else sample.rows for sample in samples]
                slopes = exact(_flat(got, rows), got.shape)
                yield Comparison(name, str(got.dtype), got, slopes, _describing(given, got.shape))
        loss = np.asarray(result.loss)
        expected = nll if given.reduction == "none" else [gmpy2.fsum([a / b for a, b in zip(nll, over, strict=True)])]
        yield Comparison("loss", "float64", loss, exact(expected, loss.shape), lambda _: "")


def _call(given: Lattices, **options: Any) -> Any:
    targets = given.labels, given.frames, given.counts, BLANK
    keywords = options | {"reduction": given.reduction, "grad_output": given.cotangent}
    if given.durations is None:
        return refloss.rnnt(given.logits, *targets, **keywords)
    steps = np.array(given.steps)
    return refloss.tdt(given.logits, given.durations, *targets, steps, sigma=given.sigma, **keywords)


def _flat(got: np.ndarray, rows: list[dict[tuple[int, int], Row]]) -> list[Real]:
    nothing = [ZERO] * got.shape[-1]
    places = np.ndindex(got.shape[:3])
    return [value for b, t, u in places for value in (rows[b][t, u].gradient if (t, u) in rows[b] else nothing)]


def _describing(given: Lattices, shape: tuple[int, ...]) -> Callable[[int], str]:
    def describe(index: int) -> str:
        place = tuple(map(int, np.unravel_index(index, shape)))
        lengths = given.frames[place[0]], given.counts[place[0]]
        return f"{given.logits.dtype} {given.logits.shape} {given.steps} at {place} of {lengths}"

    return describe


Draw = Callable[[np.random.Generator, int], Iterator[Lattices]]
SHAPES = ((5, 3, 4), (12, 5, 10), (4, 2, 40), (30, 8, 3))


def _drawn(generator: np.random.Generator, shape: tuple[int, int, int], size: int, scale: float = 2.0) -> Lattices:
    frames, labels, classes = shape
    batch = max(1, size // (frames * (labels + 1) * classes))
    logits = (generator.standard_normal((batch, frames, labels + 1, classes)) * scale).astype(np.float32)
    of_frames, of_labels = (np.maximum(most - generator.integers(0, 2, batch), 1) for most in (frames, labels))
    return Lattices(logits, generator.integers(1, classes, (batch, labels)), of_frames, of_labels)


def ordinary(generator: np.random.Generator, size: int) -> Iterator[Lattices]:
    for k, shape in enumerate(SHAPES):
        reduction = ("mean_volume", "mean", "mean_batch", "sum")[k]
        yield _drawn(generator, shape, size // 4)._replace(reduction=reduction, cotangent=COTANGENTS[k])


def each_cotangent(generator: np.random.Generator, size: int) -> Iterator[Lattices]:
    for shape in SHAPES:
        given = _drawn(generator, shape, size // 4, 4.0)
        yield given._replace(reduction="none", cotangent=generator.choice(COTANGENTS, len(given.logits)))


def sure(generator: np.random.Generator, size: int) -> Iterator[Lattices]:
    """One path has nearly all of the probability: it writes at once, or at the end."""
    for margin in (10, 20, 40, 60):
        given = _drawn(generator, SHAPES[margin // 10 % 2], size // 4, 1.0)
        for b, u in np.ndindex(given.labels.shape[0], given.labels.shape[1] + 1):
            best = given.labels[b, u] if u < given.counts[b] else BLANK
            given.logits[b, 1:, u, BLANK] += np.float32(margin)
            given.logits[b, 0, u, best] += np.float32(margin)
        yield given._replace(cotangent=1 / 3)


def extreme(generator: np.random.Generator, size: int) -> Iterator[Lattices]:
    """Offsets, far classes, tiny logits, equal ones, masked classes, and integers; tiny and large cotangents."""
    for k in range(6):
        given = _drawn(generator, SHAPES[k % 2], size // 6)
        x = given.logits
        x += np.float32(1e4 if k == 0 else 0)
        x *= np.float32((1, 60, 1e-20, 1, 1, 1)[k])
        x[:] = 0.3 if k == 3 else x
        if k == 4:
            absent = generator.random(x.shape) < 0.4
            absent[..., BLANK] = absent[..., 1] = False
            x[absent] = -np.inf
            given.labels[:] = 1
        given = given._replace(logits=np.round(x) if k == 5 else x)
        yield given._replace(cotangent=(1.0, 0.1, 1 / 3, -0.1, 1e-38, 1e30)[k])


def two_classes(generator: np.random.Generator, size: int) -> Iterator[Lattices]:
    """Nothing but blanks and labels: integers, whose gradients may be 0, and any."""
    for scale in (0.0, 1.0, 3.0):
        given = _drawn(generator, (6, 4, 2), size // 3, scale)
        yield given._replace(logits=np.round(given.logits) if scale == 1.0 else given.logits, cotangent=1 / 7)


def formats(generator: np.random.Generator, size: int) -> Iterator[Lattices]:
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float64):
        given = _drawn(generator, SHAPES[1], size // 3, 3.0)
        yield given._replace(logits=given.logits.astype(dtype), cotangent=-0.1)


RNNT: dict[str, Draw] = {
    "ordinary": ordinary,
    "cotangents": each_cotangent,
    "sure": sure,
    "extreme": extreme,
    "two classes": two_classes,
    "formats": formats,
}


def _with_durations(draw: Draw) -> Draw:
    """The same for a TDT, with durations of several kinds; a sample that has no path is left out."""

    def drawn(generator: np.random.Generator, size: int) -> Iterator[Lattices]:
        for k, given in enumerate(draw(generator, size)):
            steps = DURATIONS[k % len(DURATIONS)]
            shape = (*given.logits.shape[:3], len(steps))
            durations = (generator.standard_normal(shape) * 2).astype(np.float32)
            durations[..., 0] += np.float32((0, 0, 20, 40)[k % 4])
            durations = durations.astype(list(DTYPES.values())[k % 4])
            feasible = [_ends(steps, *lengths) for lengths in zip(given.frames, given.counts, strict=True)]
            if any(feasible):
                arrays = (given.logits, given.labels, given.frames, given.counts, durations)
                logits, labels, frames, counts, durations = (array[feasible] for array in arrays)
                cotangent = given.cotangent if np.ndim(given.cotangent) == 0 else given.cotangent[feasible]
                yield Lattices(
                    logits, labels, frames, counts, cotangent, given.reduction, durations, steps, (0.0, 0.05)[k % 2]
                )

    return drawn


def _ends(steps: tuple[int, ...], frames: int, count: int) -> bool:
    """Whether there is a path."""
    places = {(0, 0)}
    for _ in range(frames + count + 1):
        more = {(t + step, u + writes) for t, u in places for step in steps for writes in (0, 1) if step or writes}
        places |= {(t, u) for t, u in more if t < frames and u <= count}
    return any(t + step == frames and u == count and step > 0 for t, u in places for step in steps)


TDT: dict[str, Draw] = {kind: _with_durations(draw) for kind, draw in RNNT.items()}
