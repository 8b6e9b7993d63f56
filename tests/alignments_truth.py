"""CTC by its definition: every alignment there is, or a recursion over logarithms, in mpmath numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import mpmath
import numpy as np


class Truth(NamedTuple):
    """−log of the probability of all alignments, and the gradient p − γ [T][C]."""

    loss: Any
    gradient: list[list[Any]]


def probabilities(values: np.ndarray, *, is_softmax: bool) -> list[list[Any]]:
    """Of a sequence's frames [T, C]."""
    rows = [[mpmath.exp(mpmath.mpf(float(x))) for x in row] for row in values]
    return [[p / mpmath.fsum(row) for p in row] for row in rows] if is_softmax else rows


def collapsed(alignment: tuple[int, ...], blank: int) -> list[int]:
    """What an alignment stands for: repetitions taken for one, then blanks left out."""
    return [label for label, _ in itertools.groupby(alignment) if label != blank]


def by_classes(classes: int, frames: int, labels: list[int], blank: int) -> Iterator[tuple[int, ...]]:
    """Every alignment of labels, found among all sequences of classes."""
    return (each for each in itertools.product(range(classes), repeat=frames) if collapsed(each, blank) == labels)


def by_states(frames: int, labels: list[int], blank: int) -> Iterator[tuple[int, ...]]:
    """The same, found among all sequences of states, which also tell labels that are blank from blanks."""
    states = [blank if s % 2 == 0 else labels[s // 2] for s in range(2 * len(labels) + 1)]

    def allowed(a: int, b: int) -> bool:
        return b - a in (0, 1) or (b - a == 2 and b % 2 == 1 and states[a] != states[b])

    for each in itertools.product(range(len(states)), repeat=frames):
        ends = each[0] < 2 and each[-1] >= len(states) - 2
        if ends and all(allowed(a, b) for a, b in itertools.pairwise(each)):
            yield tuple(states[s] for s in each)


def by_definition(p: list[list[Any]], alignments: Iterator[tuple[int, ...]]) -> Truth:
    """The sum over alignments, and how much of it emits each class in each frame."""
    total, shares = mpmath.mpf(0), [[mpmath.mpf(0)] * len(row) for row in p]
    for alignment in alignments:
        weight = mpmath.fprod(row[k] for row, k in zip(p, alignment, strict=True))
        total += weight
        for t, k in enumerate(alignment):
            shares[t][k] += weight
    gradient = [[a - b / total for a, b in zip(row, share, strict=True)] for row, share in zip(p, shares, strict=True)]
    return Truth(-mpmath.log(total), gradient)


def _log_sum(terms: list[Any]) -> Any:
    finite = [term for term in terms if term != -mpmath.inf]
    if not finite:
        return -mpmath.inf
    largest = max(finite)
    return largest + mpmath.log(mpmath.fsum(mpmath.exp(term - largest) for term in finite))


def by_logarithms(p: list[list[Any]], labels: list[int], blank: int) -> Truth:
    """A recursion over logarithms, and over states and their successors, for longer sequences."""
    states = [blank if s % 2 == 0 else labels[s // 2] for s in range(2 * len(labels) + 1)]
    last = len(states) - 1
    logs = [[mpmath.log(x) if x else -mpmath.inf for x in row] for row in p]
    after = {
        s: [r for r in (s, s + 1, s + 2) if r <= last and (r < s + 2 or (r % 2 == 1 and states[r] != states[s]))]
        for s in range(len(states))
    }
    before = {s: [r for r in after if s in after[r]] for s in after}
    alpha = [[logs[0][states[s]] if s < 2 else -mpmath.inf for s in after]]
    for row in logs[1:]:
        alpha.append([row[states[s]] + _log_sum([alpha[-1][r] for r in before[s]]) for s in after])
    beta = [[mpmath.mpf(0) if s >= last - 1 else -mpmath.inf for s in after]]
    for row in reversed(logs[1:]):
        beta.insert(0, [_log_sum([row[states[r]] + beta[0][r] for r in after[s]]) for s in after])
    total = _log_sum(alpha[-1][-2:])
    gradient = []
    for row, a, b in zip(p, alpha, beta, strict=True):
        slopes = list(row)
        for s, label in enumerate(states):
            slopes[label] -= mpmath.exp(a[s] + b[s] - total)
        gradient.append(slopes)
    return Truth(-total, gradient)
