"""The points that masks are looked at in: a caller's, or drawn from a seed; which of them are the uncertain ones.

Of every layer, in the order of the layers' components,

    matcher     [P, 2], or [B, P, 2] where each image has its own: where all masks are compared for the matching
    candidates  [N, C, 2]: of those of matched pair k, row k, the least certain are chosen, of equals the first
    random      [N, R, 2]: what is added to them

A point is x and y in [0, 1], in parts of the width and the height. Pairs are counted as the matching has them: image by
image, group by group, queries in order. N may be larger than the number M of pairs, which is known only afterwards.

What is not given is drawn: coordinates are the upper 24 bits of 64-bit words of numpy.random.Philox (Philox4x64-10,
Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), times 2^-24, x before y. Its key is the seed, its
counter (0, 3·layer + kind, k, 0) for kinds 0, 1 and 2 as above and pair k, or image k for the matcher. So the points of
a pair are the same on every machine, and whatever the others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays
from refloss.kernels.points.loop import Planes
from refloss.kernels.points.run import sample

MATCHER, CANDIDATES, RANDOM = range(3)
_BITS = 24
Sizes = tuple[int | str, ...]  # of axes; those that may be any are letters


class Plan(NamedTuple):
    """How many points of each kind there are, unless somebody gives others."""

    matcher: int
    candidates: int
    uncertain: int  # how many candidates are chosen
    random: int
    images: int | None = None  # of which each has a matcher's points of its own


class Given(NamedTuple):
    """A caller's points of all layers; see above. final [N, P, 2] takes the place of candidates and random ones."""

    matcher: Any = None
    candidates: Any = None
    random: Any = None
    final: Any = None


def drawn(seed: int, layer: int, kind: int, number: int, count: int) -> np.ndarray:
    """[count, 2] points of a pair or an image."""
    words = np.random.Philox(key=seed, counter=[0, 3 * layer + kind, number, 0]).random_raw(2 * count)
    return np.asarray((words >> (64 - _BITS)).reshape(count, 2) * 2.0**-_BITS)


class Points:
    """The points of every layer."""

    def __init__(self, plans: Sequence[Plan], seed: Any, given: Given) -> None:
        self._plans, self._seed = plans, arrays.integer(seed, "seed", low=0)
        if given.final is not None and not (given.candidates is None and given.random is None):
            raise ValueError("points is given with candidate_points or random_points, whose place it takes")
        self._matcher = _of_layers(given.matcher, "matcher_points", [_sizes(plan.images) for plan in plans])
        pairs = "N"
        self._candidates = _of_layers(
            given.candidates, "candidate_points", [(pairs, "C", 2) for _ in plans], [plan.uncertain for plan in plans]
        )
        self._random = _of_layers(given.random, "random_points", [(pairs, plan.random, 2) for plan in plans])
        self._final = _of_layers(given.final, "points", [(pairs, "P", 2) for _ in plans], [1 for _ in plans])

    def of_matcher(self, layer: int) -> np.ndarray:
        """[P, 2], or [B, P, 2]."""
        if self._matcher:
            return self._matcher[layer]
        plan = self._plans[layer]
        sets = self._drawn(layer, MATCHER, 1 if plan.images is None else plan.images, plan.matcher)
        return sets[0] if plan.images is None else sets

    def of_pairs(self, layer: int, planes: np.ndarray, rows: np.ndarray, backend: str) -> np.ndarray:
        """[M, P, 2] the points of matched pairs, whose masks are planes rows [M] of [..., h, w]."""
        plan, count = self._plans[layer], len(rows)
        if self._final:
            return _first(self._final[layer], count, f"points[{layer}]")
        candidates = self._of_kind(self._candidates, layer, CANDIDATES, count, plan.candidates)
        random = self._of_kind(self._random, layer, RANDOM, count, plan.random)
        logits = sample(Planes(planes, rows, np.arange(count)), candidates, backend).sum(axis=0)
        # As torch sorts: what is no number comes before all others.
        certainty = np.where(np.isnan(logits), -1.0, np.abs(logits))
        chosen = np.argsort(certainty, axis=1, kind="stable")[:, : plan.uncertain]
        chosen.sort(axis=1)
        return np.concatenate([np.take_along_axis(candidates, chosen[..., None], 1), random], axis=1)

    def _of_kind(self, given: list[np.ndarray], layer: int, kind: int, count: int, points: int) -> np.ndarray:
        name = ("matcher_points", "candidate_points", "random_points")[kind]
        return _first(given[layer], count, f"{name}[{layer}]") if given else self._drawn(layer, kind, count, points)

    def _drawn(self, layer: int, kind: int, sets: int, points: int) -> np.ndarray:
        result = np.empty((sets, points, 2))
        for number in range(sets):
            result[number] = drawn(self._seed, layer, kind, number, points)
        return result


def _sizes(images: int | None) -> Sizes:
    """Those of a matcher's points."""
    return ("P", 2) if images is None else (images, "P", 2)


def _first(sets: np.ndarray, count: int, name: str) -> np.ndarray:
    """Those of the pairs that there are."""
    if len(sets) < count:
        raise ValueError(f"{name} has {len(sets)} entries; expected at least {count}, one for each matched pair")
    return sets[:count]


def _of_layers(value: Any, name: str, shapes: Sequence[Sizes], least: Sequence[int] = ()) -> list[np.ndarray]:
    """An entry for each layer, of these shapes, with at least so many points; none if there is nothing."""
    if value is None:
        return []
    entries = value if isinstance(value, list | tuple) else arrays.float_array(value, name)
    if isinstance(entries, np.ndarray) and entries.ndim == 0:
        raise ValueError(f"{name} has shape (); expected an entry for each of {len(shapes)} layers")
    if len(entries) != len(shapes):
        raise ValueError(f"{name} has {len(entries)} entries; expected one for each of {len(shapes)} layers")
    fewest = least or [0 for _ in shapes]
    return [_entry(entries[i], f"{name}[{i}]", shapes[i], fewest[i]) for i in range(len(entries))]


def _entry(value: Any, name: str, shape: Sizes, least: int) -> np.ndarray:
    array = arrays.float_array(value, name)
    sizes = zip(shape, array.shape, strict=False)
    fits = array.ndim == len(shape) and all(isinstance(size, str) or size == have for size, have in sizes)
    if not fits or array.shape[-2] < least:
        enough = f" with {shape[-2]} of at least {least}" if least else ""
        raise ValueError(f"{name} has shape {array.shape}; expected [{', '.join(map(str, shape))}]{enough}")
    arrays.check_range(array, 0.0, 1.0, name)
    return array.astype(np.float64)
