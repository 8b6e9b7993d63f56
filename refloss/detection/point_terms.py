"""Masks at points: what they cost a matching, and their losses; see losses/parts/mask_points.py."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refloss.detection.engine import Layer, Outcome, Scene, Term
from refloss.detection.matching import MoreCosts
from refloss.detection.points import Points
from refloss.detection.targets import Targets
from refloss.detection.terms import mean
from refloss.kernels.points import run
from refloss.kernels.points.loop import CostWeights, Cotangents, Planes, locate
from refloss.losses.parts.mask_points import LOOP
from refloss.numerics.exact import Exact, exact, quotient, quotient_pair
from refloss.result import Intermediates


class Kind(NamedTuple):
    """How a head looks at masks: the names of its components, and how it looks at targets."""

    entropy: str
    dice: str
    bilinear: bool  # targets; else the nearest pixel
    padded: bool  # to the largest of all images, for the losses


def with_points(layer: Layer, number: int, points: Points, kind: Kind, weights: CostWeights) -> Layer:
    """The layer, whose masks cost something and have losses."""
    planes = layer.tensors["pred_masks"].value
    costs = _mask_costs(points, number, planes, weights, bilinear=kind.bilinear)
    return layer._replace(terms=(*layer.terms, _masks(points, number, kind)), costs=costs)


def _mask_costs(points: Points, layer: int, planes: np.ndarray, weights: CostWeights, *, bilinear: bool) -> MoreCosts:
    """What masks [B, Q, h, w] cost with each object of their image."""
    queries = planes.shape[1]

    def costs(targets: Targets, backend: str) -> np.ndarray:
        sets = points.of_matcher(layer)
        result = np.zeros((queries, len(targets.labels)))
        for image, (first, last) in enumerate(itertools.pairwise(targets.offsets)):
            own = sets if sets.ndim == 2 else sets[image]
            shown = np.arange(last - first)
            at_points = _targets(targets.masks[image], shown, own[None], np.zeros_like(shown), bilinear=bilinear)
            rows = image * queries + np.arange(queries)
            result[:, first:last] = run.costs(LOOP, planes, rows, own, at_points.sum(axis=0), weights, backend)
        return result

    return costs


def _masks(points: Points, layer: int, kind: Kind) -> Term:
    """Cross-entropy, a mean over points, and dice loss of matched masks; sums over num_boxes."""

    def compute(scene: Scene, cotangents: Mapping[str, Exact]) -> Outcome:
        of_entropy, of_dice = cotangents[kind.entropy], cotangents[kind.dice]
        predicted = scene.layer.tensors["pred_masks"].wanted(of_entropy != 0.0 or of_dice != 0.0)
        chosen = points.of_pairs(layer, predicted.value, scene.rows, scene.backend)
        divisor = exact(scene.num_boxes) * chosen.shape[1]
        losses = run.compare(
            LOOP,
            *predicted,
            scene.rows,
            chosen,
            _matched_targets(scene, chosen, kind),
            Cotangents(quotient_pair(of_entropy, divisor), quotient_pair(of_dice, exact(scene.num_boxes))),
            scene.backend,
        )
        components = {
            kind.entropy: quotient(sum(losses.entropy, Fraction(0)), divisor),
            kind.dice: mean(losses.dice, scene),
        }
        values = {"dice": losses.dice, "points": chosen, "matcher_points": points.of_matcher(layer)}
        return Outcome(components, Intermediates(values))

    return Term((kind.entropy, kind.dice), compute)


def _matched_targets(scene: Scene, chosen: np.ndarray, kind: Kind) -> np.ndarray:
    """[2, M, P] the targets of all pairs at their points, pairs."""
    result, matching = np.empty((2, *chosen.shape[:2])), scene.matching
    sizes = [mask.shape[1:] for mask in scene.targets.masks]
    height, width = map(max, zip((0, 0), *sizes, strict=True))
    largest = (height, width) if kind.padded else None
    for image, masks_of_image in enumerate(scene.targets.masks):
        pairs = np.flatnonzero(matching.image == image)
        result[:, pairs] = _targets(
            masks_of_image,
            matching.object[pairs],
            chosen[pairs],
            np.arange(len(pairs)),
            largest,
            bilinear=kind.bilinear,
        )
    return result


def _targets(
    masks_of_image: np.ndarray,
    rows: np.ndarray,
    points: np.ndarray,
    sets: np.ndarray,
    size: tuple[int, int] | None = None,
    *,
    bilinear: bool,
) -> np.ndarray:
    """[2, R, P]: masks rows at sets of points, as pairs; masks are padded with 0 to a size."""
    height, width = masks_of_image.shape[1:]
    if bilinear:
        # 0 and 1 are numbers of every format.
        values = masks_of_image.astype(np.float16) if masks_of_image.dtype.kind in "biu" else masks_of_image
        return run.sample(Planes(values, rows, sets), points, "cpu", size)
    nearest = locate(points, (height, width) if size is None else size).nearest()[sets]
    y, x = nearest[..., 0], nearest[..., 1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    result = np.zeros((2, *y.shape))
    found = masks_of_image[np.broadcast_to(rows[:, None], y.shape)[inside], y[inside], x[inside]]
    result[0][inside] = found.astype(np.float64)
    return result
