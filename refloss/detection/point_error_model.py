"""How far honest losses of masks at points may be from the exact ones, at the oracle's own points.

Notation as in layer_error_model: e = k·u, p = σ(x), b the binary cross-entropy. A point's place among h × w pixels is
rounded to the type that is computed in: its weights are off by (h + w)·v, which moves a sample x by as much of the
largest pixel around, d in all with its own rounding, and a target that is sampled the same way by δt. Then

    entropy     b is off by f·(1 + |x|) + d + δt·|x|, p − t by f·(p + t) + p·(1 − p)·d + δt
    dice        as in error_model/focal.py; A and B are off by Σ δt as well

and pixels gather these errors, and the terms, of the points around them with weights that are off as above.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.error_model.focal import Dice, sigmoid
from refloss.kernels.points.loop import locate
from refloss.roundoff import STEPS, Roundoff

if TYPE_CHECKING:
    from refloss.detection.layer_error_model import Layer

COMPONENTS = (("loss_mask_ce", "loss_mask_dice"), ("loss_mask", "loss_dice"))


class _Grid(NamedTuple):
    """The four pixels around points [M, P] of planes, and their weights; pixels outside are on a border of zeros."""

    pixels: tuple[np.ndarray, np.ndarray, np.ndarray]  # [4, M, P] of planes with a border
    weights: np.ndarray  # [4, M, P]
    size: tuple[int, int]

    @classmethod
    def of(cls, points: np.ndarray, size: tuple[int, int]) -> _Grid:
        places = locate(points, size)
        corners = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])[:, None, None]
        far = places.far.sum(axis=-1)
        weights = np.where(corners == 1, far, 1 - far).prod(axis=-1)
        y, x = np.moveaxis(places.first + corners + 1, -1, 0)
        planes = np.broadcast_to(np.arange(len(points))[:, None], y.shape)
        return cls((planes, y, x), weights, size)

    def sampled(self, planes: np.ndarray) -> np.ndarray:
        """[M, P] from planes [M, h, w], which may be smaller than the grid."""
        bordered = np.zeros((len(planes), self.size[0] + 2, self.size[1] + 2))
        bordered[:, 1 : planes.shape[1] + 1, 1 : planes.shape[2] + 1] = planes
        return np.asarray((self.weights * bordered[self.pixels]).sum(axis=0))

    def handed_back(self, values: np.ndarray) -> np.ndarray:
        """[M, h, w] from values [M, P]."""
        bordered = np.zeros((len(values), self.size[0] + 2, self.size[1] + 2))
        np.add.at(bordered, self.pixels, self.weights * values)
        return bordered[:, 1:-1, 1:-1]

    def off(self, unit: Roundoff) -> float:
        """How far weights are off."""
        return (STEPS + sum(self.size)) * unit.inside


class _Masks(NamedTuple):
    """Samples and targets [M, P], and how far they are off."""

    x: np.ndarray
    moved: np.ndarray
    t: np.ndarray
    target_moved: np.ndarray


def _around(values: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return np.asarray(ndimage.maximum_filter(np.abs(values), (1, 3, 3), mode="constant"))


def _targets(layer: Layer, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At the nearest pixels, or sampled, of masks that are padded to the largest then."""
    given = layer.head.masks()
    t, moved = np.zeros(points.shape[:2]), np.zeros(points.shape[:2])
    if layer.head.specification.classes != "cross-entropy":
        for m, (image, _, chosen) in enumerate(layer.table):
            mask = np.pad(given[image][chosen], ((0, 1), (0, 1)))
            nearest = locate(points[m : m + 1], (mask.shape[0] - 1, mask.shape[1] - 1)).nearest()[0]
            t[m] = mask[nearest[:, 0], nearest[:, 1]]
        return t, moved
    largest = np.max([mask.shape[1:] for mask in given], axis=0)
    grid = _Grid.of(points, (int(largest[0]), int(largest[1])))
    padded = np.zeros((len(t), *grid.size))
    for m, (image, _, chosen) in enumerate(layer.table):
        mask = given[image][chosen]
        padded[m, : mask.shape[0], : mask.shape[1]] = mask
    return grid.sampled(padded), moved + grid.off(layer.unit)


def mask_bounds(layer: Layer) -> dict[str, Any]:
    """Of both components, and of the masks' gradient."""
    from scipy import ndimage

    entropy, dice = next(names for names in COMPONENTS if names[0] in layer.record.weights)
    given, pairs = layer.input("pred_masks"), (layer.table[:, 0], layer.table[:, 1])
    points = layer.head.result.intermediates[f"points{layer.record.suffix}"]
    gradient = np.zeros(given.shape)
    if not len(points):
        return {"pred_masks": gradient, entropy: 0.0, dice: 0.0}
    planes, unit = given[pairs], layer.unit
    grid = _Grid.of(points, (planes.shape[1], planes.shape[2]))
    x = grid.sampled(planes)
    moved = grid.off(unit) * grid.sampled(_around(planes)) + unit.between * np.abs(x)
    masks = _Masks(x, moved, *_targets(layer, points))
    values, slopes, terms = _errors(layer, masks, entropy, dice)
    off = grid.off(unit) + unit.sum(points.shape[1])
    # A filter adds and subtracts: what is nothing may come out as less.
    near = 9 * np.maximum(ndimage.uniform_filter(grid.handed_back(terms), (1, 3, 3), mode="constant"), 0.0)
    gradient[pairs] = grid.handed_back(slopes + STEPS * unit.between * terms) + off * near
    return {"pred_masks": gradient, **values}


def _errors(layer: Layer, masks: _Masks, entropy: str, dice: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Of the components; of what points hand back [M, P], and the magnitude of its terms."""
    x, moved, t, target_moved = masks
    unit, off, few = layer.unit, layer.off, layer.unit.few
    p, rest, positive, negative = sigmoid(x)
    flat, loss, distance = p * rest, t * positive + (1 - t) * negative, np.abs(p * (1 - t) - rest * t)
    value = few * (1 + np.abs(x)) + moved + target_moved * np.abs(x) + off * loss
    slope = few * (p + t) + flat * moved + target_moved + off * distance
    of_dice = Dice(x, t, unit, moved)
    above, below, _ = (part[:, None] for part in of_dice.totals)
    of_targets = target_moved.sum(axis=1, keepdims=True) / below
    dice_slope = of_dice.slopes(0, x.size)[0].reshape(x.shape)
    dice_slope += flat * (2 * of_targets * (2 * above / below + 2 * t) + 2 * target_moved) / below
    count, points = STEPS * unit.between + unit.sum(x.size), x.shape[1]
    of_entropy, of_dices = layer.coefficient(entropy) / points, layer.coefficient(dice)
    components = {
        entropy: (value.sum() + count * loss.sum()) / points / layer.num_boxes,
        dice: (of_dice.losses() + 4 * of_targets[:, 0]).sum() / layer.num_boxes,
    }
    terms = of_entropy * distance + of_dices * flat * (above / below + 2 * t) / below
    return components, of_entropy * slope + of_dices * dice_slope, terms
