"""Transducers in mpmath: every path one by one, and a recursion of probabilities for what has too many."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mpmath
import numpy as np

PRECISION_BITS = 400


class Sample(NamedTuple):
    """Rows of one sample [T, U + 1, V], without what is beyond its lengths, and what is to be written."""

    logits: np.ndarray
    labels: list[int]
    blank: int
    durations: np.ndarray | None = None  # their logits [T, U + 1, n]
    steps: tuple[int, ...] = ()
    sigma: float = 0.0


class Arc(NamedTuple):
    """From (t, u): frames and labels further, the class that is written, which duration."""

    frames: int
    writes: int
    token: int
    duration: int


class Truth(NamedTuple):
    """−log P, and its derivatives."""

    loss: Any
    logits: np.ndarray
    durations: np.ndarray | None


def _softmax(row: np.ndarray) -> list[Any]:
    values = [mpmath.mpf(float(value)) for value in row]
    largest = max(values)
    terms = [mpmath.exp(value - largest) for value in values]
    total = mpmath.fsum(terms)
    return [term / total for term in terms]


def _arcs(sample: Sample, u: int) -> Iterator[Arc]:
    """What leads from a node with u labels, wherever it arrives."""
    label = sample.labels[u] if u < len(sample.labels) else None
    if sample.durations is None:
        yield Arc(1, 0, sample.blank, -1)
        if label is not None:
            yield Arc(0, 1, label, -1)
        return
    for i, step in enumerate(sample.steps):
        if step > 0:
            yield Arc(step, 0, sample.blank, i)
        if label is not None:
            yield Arc(step, 1, label, i)


def paths(sample: Sample) -> Iterator[list[tuple[int, int, Arc]]]:
    """Every path: its nodes, and the arc from each."""
    frames, count = sample.logits.shape[0], len(sample.labels)

    def further(t: int, u: int, before: list[tuple[int, int, Arc]]) -> Iterator[list[tuple[int, int, Arc]]]:
        for arc in _arcs(sample, u):
            here = [*before, (t, u, arc)]
            ends = t + arc.frames == frames and u == count and not arc.writes
            if ends:
                yield here
            elif t + arc.frames < frames:
                yield from further(t + arc.frames, u + arc.writes, here)

    if frames:
        yield from further(0, 0, [])


def by_paths(sample: Sample, coefficient: Any = 1) -> Truth:
    """A path has the probability Π p·q·e^−σ; its derivative by a logit is that of each factor's logarithm."""
    with mpmath.workprec(PRECISION_BITS):
        tokens, durations, shift = _probabilities(sample)
        gradient = _zeros(sample.logits.shape)
        of_durations = None if sample.durations is None else _zeros(sample.durations.shape)
        total = mpmath.mpf(0)
        for path in paths(sample):
            p = mpmath.mpf(1)
            for t, u, arc in path:
                p *= tokens[t][u][arc.token] * (1 if durations is None else durations[t][u][arc.duration] * shift)
            total += p
            for t, u, arc in path:
                _add(gradient[t, u], tokens[t][u], arc.token, p)
                if durations is not None:
                    _add(of_durations[t, u], durations[t][u], arc.duration, p)  # type: ignore[index]
        factor = coefficient / total if total else mpmath.nan
        loss = -mpmath.log(total) if total else mpmath.inf
        return Truth(loss, gradient * factor, None if of_durations is None else of_durations * factor)


def _probabilities(sample: Sample) -> tuple[Any, Any, Any]:
    tokens = [[_softmax(row) for row in frame] for frame in sample.logits]
    if sample.durations is None:
        return tokens, None, mpmath.mpf(1)
    durations = [[_softmax(row) for row in frame] for frame in sample.durations]
    return tokens, durations, mpmath.exp(-mpmath.mpf(sample.sigma))


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    zeros = np.empty(shape, object)
    zeros[...] = mpmath.mpf(0)
    return zeros


def _add(row: np.ndarray, p: list[Any], taken: int, weight: Any) -> None:
    """weight·∂(−log p_taken)/∂z."""
    for k, each in enumerate(p):
        row[k] += weight * (each - (k == taken))


def by_recursion(sample: Sample, coefficient: Any = 1) -> Truth:
    """Probabilities of coming to a node and of ending from it, and the shares of arcs."""
    frames, count = sample.logits.shape[0], len(sample.labels)
    with mpmath.workprec(PRECISION_BITS):
        tokens, durations, shift = _probabilities(sample)
        behind: dict[tuple[int, int], Any] = {(frames, count): mpmath.mpf(1)}

        def weight(t: int, u: int, arc: Arc) -> Any:
            return tokens[t][u][arc.token] * (1 if durations is None else durations[t][u][arc.duration] * shift)

        def after(t: int, u: int, arc: Arc) -> Any:
            if t + arc.frames == frames and arc.writes:
                return mpmath.mpf(0)
            return behind.get((t + arc.frames, u + arc.writes), mpmath.mpf(0))

        for t, u in itertools.product(reversed(range(frames)), reversed(range(count + 1))):
            behind[t, u] = mpmath.fsum(weight(t, u, arc) * after(t, u, arc) for arc in _arcs(sample, u))
        ahead: dict[tuple[int, int], Any] = {(0, 0): mpmath.mpf(1)}
        total = behind[0, 0]
        gradient = _zeros(sample.logits.shape)
        of_durations = None if sample.durations is None else _zeros(sample.durations.shape)
        for t, u in itertools.product(range(frames), range(count + 1)):
            here = ahead.get((t, u), mpmath.mpf(0))
            for arc in _arcs(sample, u):
                place = t + arc.frames, u + arc.writes
                ahead[place] = ahead.get(place, mpmath.mpf(0)) + here * weight(t, u, arc)
                share = coefficient * here * weight(t, u, arc) * after(t, u, arc) / total
                _add(gradient[t, u], tokens[t][u], arc.token, share)
                if durations is not None:
                    _add(of_durations[t, u], durations[t][u], arc.duration, share)  # type: ignore[index]
        return Truth(-mpmath.log(total), gradient, of_durations)


Solve = Callable[..., Truth]
