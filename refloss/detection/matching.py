"""Which query of an image stands for which of its objects."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays
from refloss.detection.targets import Targets
from refloss.kernels.matching import run
from refloss.kernels.matching.loop import FOCAL, LABEL_MAPS, SOFTMAX, Weights
from refloss.losses import cross_entropy
from refloss.losses.parts.matching_cost import LOOP
from refloss.losses.parts.softmax import softmax_rows
from refloss.options import Options
from refloss.typing import Backend

KEY = "assignment"
# [Q, N] what queries and objects cost beside, from the objects and the backend.
MoreCosts = Callable[[Targets, str], np.ndarray]
_KINDS = {"softmax": SOFTMAX, "focal": FOCAL, "label_maps": LABEL_MAPS}


class Matcher(NamedTuple):
    """What a cost is made of: see losses/parts/matching_cost.py."""

    kind: str  # "softmax", "focal" or "label_maps"
    of_class: float
    of_bbox: float
    of_giou: float
    alpha: float = 0.25
    gamma: float = 2.0
    maps: tuple[np.ndarray, ...] = ()  # [K, C] of each image, for "label_maps"
    groups: int = 1  # parts of the queries that are matched each on its own
    more: bool = False  # whether something else decides as well


class Matching(NamedTuple):
    """Pairs of a query and an object, image by image."""

    image: np.ndarray  # [M] int64
    query: np.ndarray
    object: np.ndarray  # among those of its image

    def table(self) -> np.ndarray:
        """[M, 3]: image, query, object."""
        table = np.empty((len(self.image), 3), np.int64)
        table[:, 0], table[:, 1], table[:, 2] = self
        return table


def check_matcher(matcher: Matcher) -> Matcher:
    """Raise, as transformers does, where nothing would decide."""
    if matcher.of_class == 0 and matcher.of_bbox == 0 and matcher.of_giou == 0 and not matcher.more:
        raise ValueError("config: class_cost, bbox_cost and giou_cost are all 0; nothing would decide the matching")
    return matcher


def costs(
    matcher: Matcher,
    logits: np.ndarray,
    boxes: np.ndarray | None,
    targets: Targets,
    lse: np.ndarray | None,
    backend: Backend,
    more: MoreCosts | None = None,
) -> np.ndarray:
    """[Q, N]: each object against the queries of its own image; lse [B, Q] is computed if a softmax lacks it."""
    # Without boxes, one for all.
    boxes = np.ones((*logits.shape[:2], 4), logits.dtype) if boxes is None else boxes
    # What transformers puts in place of NaN and infinities: the largest number of the type that costs have there.
    largest = float(np.finfo(np.float64 if np.float64 in (logits.dtype, boxes.dtype) else np.float32).max)
    if lse is None:
        lse = np.zeros(logits.shape[:2])
        if matcher.kind == "softmax" and len(targets.labels):
            ignored = np.full(lse.shape, -1)
            options = Options(grad=False, backend=backend)
            loop = cross_entropy.LOOP
            rows = softmax_rows(loop, logits, ignored, options, class_axis=2, ignore_index=-1, reduction="sum")
            lse = np.asarray(rows.intermediates["lse"])
    objects = run.objects_of(targets.offsets, targets.labels, targets.boxes, matcher.maps)
    of_class, of_bbox, of_giou = matcher.of_class, matcher.of_bbox, matcher.of_giou
    unknown = largest if more is None else np.inf
    weights = Weights(_KINDS[matcher.kind], of_class, of_bbox, of_giou, matcher.alpha, matcher.gamma, unknown)
    found = run.costs(LOOP, logits, boxes, lse.reshape(-1), objects, weights, backend)
    if more is None:
        return found
    with np.errstate(invalid="ignore", over="ignore"):
        found = found + more(targets, backend)
    return np.where(np.isfinite(found), found, largest)


def match(cost: np.ndarray, targets: Targets, groups: int = 1) -> Matching:
    """The assignment of least cost, image by image and group by group; queries in order, as SciPy has it."""
    # Imported here: it takes longer than refloss itself.
    from scipy.optimize import linear_sum_assignment

    size = len(cost) // groups
    pairs = []
    for image, (first, last) in enumerate(itertools.pairwise(targets.offsets)):
        for start in range(0, groups * size, max(size, 1)):
            query, chosen = linear_sum_assignment(cost[start : start + size, first:last])
            pairs.append((np.full(len(query), image), start + query, chosen))
    return _joined(pairs)


def _joined(pairs: list[tuple[Any, Any, Any]]) -> Matching:
    nothing = np.empty(0, np.int64)
    columns = zip((nothing, nothing, nothing), *pairs, strict=True)
    return Matching(*(np.concatenate(column).astype(np.int64) for column in columns))


def margins(cost: np.ndarray, matching: Matching, targets: Targets, groups: int) -> np.ndarray:
    """[B] how much worse the next best assignment of an image is; negative if this one is not the best."""
    # Costs may be as large as numbers are.
    with np.errstate(all="ignore"):
        return _margins(cost, matching, targets, groups)


def _margins(cost: np.ndarray, matching: Matching, targets: Targets, groups: int) -> np.ndarray:
    best = match(cost, targets, groups)
    size = len(cost) // groups
    result = np.empty(len(targets.counts))
    for image, (first, last) in enumerate(itertools.pairwise(targets.offsets)):
        gaps = [
            _gap(
                cost[start : start + size, first:last], *(_part(each, image, start, size) for each in (matching, best))
            )
            for start in range(0, groups * size, max(size, 1))
        ]
        result[image] = sum(gap for gap, _ in gaps)
        if result[image] >= 0.0:
            result[image] = min((run.margin(*parts) for _, parts in gaps), default=np.inf)
    return result


def _part(matching: Matching, image: int, start: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of an image whose queries are in a group, counted from its first query."""
    selected = (matching.image == image) & (matching.query >= start) & (matching.query < start + size)
    return matching.query[selected] - start, matching.object[selected]


def _gap(cost: np.ndarray, pairs: tuple[np.ndarray, ...], best: tuple[np.ndarray, ...]) -> tuple[float, Any]:
    """What the best assignment costs more, at most 0; and costs, queries and objects."""
    return float(cost[best].sum() - cost[pairs].sum()), (cost, *pairs)


def given_matchings(assignment: Any, suffixes: list[str], also: tuple[str, ...] = ()) -> dict[str, Any]:
    """The caller's matching for each layer by its suffix: from intermediates, or in the order of the layers."""
    if assignment is None:
        return {}
    if isinstance(assignment, Mapping):
        return {suffix: assignment[KEY + suffix] for suffix in (*suffixes, *also) if KEY + suffix in assignment}
    layers = arrays.entries(assignment, KEY, "None, a mapping, or a list with an entry for each layer")
    if len(layers) != len(suffixes):
        order = ", ".join(repr(KEY + suffix) for suffix in suffixes)
        raise ValueError(f"assignment has {len(layers)} entries; expected one for each layer: {order}")
    return {suffix: layer for suffix, layer in zip(suffixes, layers, strict=True) if layer is not None}


def read_matching(given: Any, name: str, queries: int, targets: Targets) -> Matching:
    """A caller's matching of a layer: [M, 3] (image, query, object), or a pair (queries, objects) for each image."""
    if isinstance(given, list | tuple):
        pairs = []
        for image, pair in enumerate(given):
            parts = arrays.entries(pair, f"{name}[{image}]", "a pair (queries, objects)")
            if len(parts) != 2:
                raise ValueError(f"{name}[{image}] has {len(parts)} entries; expected a pair (queries, objects)")
            query, chosen = (
                arrays.index_array(part, f"{name}[{image}][{i}]").reshape(-1) for i, part in enumerate(parts)
            )
            arrays.check_shape(chosen, query.shape, f"{name}[{image}][1]", "an object for each query")
            pairs.append((np.full(len(query), image), query, chosen))
        if len(pairs) != len(targets.counts):
            raise ValueError(f"{name} has {len(pairs)} entries; expected one for each of {len(targets.counts)} images")
        matching = _joined(pairs)
    else:
        table = arrays.index_array(given, name)
        if table.ndim != 2 or table.shape[1] != 3:
            raise ValueError(f"{name} has shape {table.shape}; expected [M, 3]: image, query, object")
        matching = Matching(*(table[:, column] for column in range(3)))
    _check(matching, name, queries, targets)
    return matching


def check_queries(matching: Matching, name: str, queries: int) -> None:
    """Raise unless every query exists."""
    _check_range(matching.query, queries, name, "query")


def _check_range(part: np.ndarray, limit: int, name: str, what: str) -> None:
    wrong = np.flatnonzero((part < 0) | (part >= limit))
    if wrong.size:
        raise ValueError(f"{name}: {what} {part[wrong[0]]} of pair {wrong[0]} is outside [0, {limit})")


def _check(matching: Matching, name: str, queries: int, targets: Targets) -> None:
    _check_range(matching.image, len(targets.counts), name, "image")
    check_queries(matching, name, queries)
    counts = targets.counts[matching.image]
    wrong = np.flatnonzero((matching.object < 0) | (matching.object >= counts))
    if wrong.size:
        pair = wrong[0]
        raise ValueError(
            f"{name}: object {matching.object[pair]} of pair {pair} is outside [0, {counts[pair]}),"
            f" the objects of image {matching.image[pair]}"
        )
    rows = matching.image * queries + matching.query
    if len(np.unique(rows)) < len(rows):
        raise ValueError(f"{name}: a query is matched twice")
