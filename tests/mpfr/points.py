"""Masks at points: bilinear samples and their adjoint, the nearest pixel, both losses; Mask2Former's criterion."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from refloss.result import MatchedLayer
from tests.mpfr.definitions import ONE, ZERO, Softmax, soft_target
from tests.mpfr.elements import COTANGENTS
from tests.mpfr.masks import dice_of
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

HALF = ONE / 2


class Pixel(NamedTuple):
    """One that a point has a share in, and which."""

    y: int
    x: int
    weight: Real


def place(coordinate: float, size: int) -> tuple[int, Real]:
    """The pixel before a point of an axis, and how far behind it the point is."""
    at = real(coordinate) * size - HALF
    first = int(gmpy2.floor(at))
    return first, at - first


def pixels(point: np.ndarray, size: tuple[int, int]) -> list[Pixel]:
    """Those around a point (x, y) that are in the plane."""
    (left, right_share), (top, lower_share) = place(point[0], size[1]), place(point[1], size[0])
    corners = [
        Pixel(top + i, left + j, (lower_share if i else ONE - lower_share) * (right_share if j else ONE - right_share))
        for i in (0, 1)
        for j in (0, 1)
    ]
    return [pixel for pixel in corners if 0 <= pixel.y < size[0] and 0 <= pixel.x < size[1]]


def sampled(plane: np.ndarray, point: np.ndarray, size: tuple[int, int] | None = None) -> Real:
    """A plane's value at a point; it is padded with 0 to a size."""
    height, width = plane.shape
    around = pixels(point, (height, width) if size is None else size)
    inside = [pixel for pixel in around if pixel.y < height and pixel.x < width]
    return gmpy2.fsum([pixel.weight * real(plane[pixel.y, pixel.x]) for pixel in inside])


def nearest(plane: np.ndarray, point: np.ndarray) -> Real:
    """The value of the pixel that is nearest; of two the one with the even number, and 0 outside."""
    place_of = []
    for coordinate, size in zip(point, plane.shape[::-1], strict=True):
        first, share = place(coordinate, size)
        place_of.append(first + int(share > HALF or (share == HALF and first % 2 == 1)))
    x, y = place_of
    return real(plane[y, x]) if 0 <= y < plane.shape[0] and 0 <= x < plane.shape[1] else ZERO


class Loss(NamedTuple):
    """Of a mask: the mean of its cross-entropies, its dice loss, and what its pixels get of both."""

    entropy: Real
    dice: Real
    gradient: np.ndarray


def loss_of(plane: np.ndarray, points: np.ndarray, t: list[Real], of_entropy: Real, of_dice: Real) -> Loss:
    """A mask of MPFR numbers at points, for targets there and the cotangents of both losses."""
    x = [gmpy2.fsum([p.weight * plane[p.y, p.x] for p in pixels(point, plane.shape)]) for point in points]
    entropies = [soft_target(a, b) for a, b in zip(x, t, strict=True)]
    dice = dice_of(x, t)
    gradient = np.full(plane.shape, ZERO, object)
    for point, (_, first), second in zip(points, entropies, dice.of_logits, strict=True):
        slope = of_entropy / len(points) * first + of_dice * second
        for pixel in pixels(point, plane.shape):
            gradient[pixel.y, pixel.x] += pixel.weight * slope
    return Loss(gmpy2.fsum([value for value, _ in entropies]) / len(points), dice.loss, gradient)


class Call(NamedTuple):
    """Of refloss.mask2former."""

    arguments: dict[str, Any]
    cotangent: float


def compare(call: Call) -> Iterator[Comparison]:
    """Its gradients and its total; the assignment is a choice, which is taken from the result, as the points are."""
    with gmpy2.context(precision=PRECISION):
        yield from _compare(call)


def _compare(call: Call) -> Iterator[Comparison]:
    options: dict[str, Any] = {"grad_output": call.cotangent}
    results = {
        name: refloss.mask2former(**call.arguments, **options, grad_dtype=dtype) for name, dtype in DTYPES.items()
    }
    result = results["float64"]
    values = {name: _exactly(call.arguments[name]) for name in result.grads}
    slopes = {name: np.full(array.shape, ZERO, object) for name, array in values.items()}
    total = ZERO
    for layer in result.layers:
        chosen = result.intermediates[f"points{layer.suffix}"]
        total += _class_loss(call, layer, values, slopes) + _mask_loss(call, layer, chosen, values, slopes)
    for format_name, of_format in results.items():
        for name, got in of_format.grads.items():
            expected = exact(slopes[name].reshape(-1), got.shape)
            yield Comparison(name, format_name, got, expected, functools.partial(_described, call, name))
    found = np.asarray([result.loss])
    describe = functools.partial(_described, call, "class_queries_logits")
    yield Comparison("loss", "float64", found, exact([total], (1,)), describe)


def _exactly(array: np.ndarray) -> np.ndarray:
    result = np.empty(array.size, object)
    result[:] = reals(array)
    return result.reshape(array.shape)


def _described(call: Call, name: str, index: int) -> str:
    array = call.arguments[name]
    place_of = tuple(int(k) for k in np.unravel_index(index, array.shape))
    return f"{array.dtype} {name}{list(place_of)} of {array.shape}, grad_output {call.cotangent!r}: {array[place_of]}"


def _class_loss(call: Call, layer: MatchedLayer, values: dict[str, Any], slopes: dict[str, Any]) -> Real:
    """Cross-entropy with no object as the last class, times its weight."""
    name, config = layer.inputs["logits"], call.arguments["config"]
    logits, gradient = values[name][layer.index], slopes[name][layer.index]
    labels = np.full(logits.shape[:2], config["num_labels"])
    for image, query, number in layer.pairs.table:
        labels[image, query] = call.arguments["class_labels"][image][number]
    weights = [*[ONE] * config["num_labels"], real(config["no_object_weight"])]
    normaliser = gmpy2.fsum([weights[label] for label in labels.reshape(-1)])
    of_component, total = real(config["class_weight"]), []
    for where in np.ndindex(*labels.shape):
        share = of_component * weights[labels[where]] / normaliser
        loss, of_row = Softmax(list(logits[where])).of_label(int(labels[where]))
        total.append(share * loss)
        gradient[where] += np.array([real(call.cotangent) * share * slope for slope in of_row], object)
    return gmpy2.fsum(total)


def _mask_loss(
    call: Call, layer: MatchedLayer, chosen: np.ndarray, values: dict[str, Any], slopes: dict[str, Any]
) -> Real:
    """Both losses of masks times their weights, against targets that are sampled as masks are."""
    name, masks = layer.inputs["pred_masks"], call.arguments["mask_labels"]
    height, width = np.max([own.shape[1:] for own in masks], axis=0).tolist()
    weights = [
        real(call.arguments["config"][f"{part}_weight"]) / real(layer.pairs.num_boxes) for part in ("mask", "dice")
    ]
    total = ZERO
    for (image, query, number), points in zip(layer.pairs.table, chosen, strict=True):
        t = [sampled(masks[image][number], point, (height, width)) for point in points]
        plane = values[name][layer.index][image, query]
        of_pair = loss_of(plane, points, t, *(real(call.cotangent) * weight for weight in weights))
        slopes[name][layer.index][image, query] += of_pair.gradient
        total += weights[0] * of_pair.entropy + weights[1] * of_pair.dice
    return total


def _call(
    generator: np.random.Generator, size: int, cotangent: float, dtype: Any = np.float32, scale: float = 3.0
) -> Call:
    """Two images, two layers, masks of 4 × 5 pixels and of other sizes that are sampled."""
    queries, classes = max(4, size // (2 * 2 * (20 + 6))), 5
    counts = (max(1, queries // 3), max(1, queries // 4))

    def logits(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) * scale).astype(dtype)

    masks = [generator.random((n, 8 + k, 7 - k)) for k, n in enumerate(counts)]
    config = {"num_labels": classes, "no_object_weight": 0.3, "class_weight": 2.0, "mask_weight": 5.0}
    config |= {"dice_weight": 4.5, "train_num_points": 9, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
    arguments = {
        "masks_queries_logits": logits(2, queries, 4, 5),
        "class_queries_logits": logits(2, queries, classes + 1),
        "mask_labels": [masks[0].astype(np.float32), masks[1] < 0.4],
        "class_labels": [generator.integers(classes, size=n) for n in counts],
        "config": config,
        "auxiliary_masks_queries_logits": logits(1, 2, queries, 4, 5),
        "auxiliary_class_queries_logits": logits(1, 2, queries, classes + 1),
        "seed": int(generator.integers(2**32)),
    }
    return Call(arguments, cotangent)


def _ordinary(generator: np.random.Generator, size: int) -> Iterator[Call]:
    yield _call(generator, size, 1.0)


def _cotangents(generator: np.random.Generator, size: int) -> Iterator[Call]:
    for cotangent in COTANGENTS:
        yield _call(generator, size // 5, cotangent)


def _confident(generator: np.random.Generator, size: int) -> Iterator[Call]:
    for scale in (10.0, 40.0):
        yield _call(generator, size // 2, 0.7, scale=scale)


def _formats(generator: np.random.Generator, size: int) -> Iterator[Call]:
    for k, dtype in enumerate((ml_dtypes.bfloat16, np.float16, np.float64)):
        yield _call(generator, size // 3, COTANGENTS[k], dtype)


def _balanced(generator: np.random.Generator, size: int) -> Iterator[Call]:
    """Logits near those of the targets, which leave little, and points that fall together."""
    for scale in (0.0, 2.0**-20, 1e-9):
        call = _call(generator, size // 3, 1 / 3, scale=scale)
        for masks in call.arguments["mask_labels"]:
            masks[:] = 1
        call.arguments["mask_labels"][0][:] = 0.5
        pairs = sum(map(len, call.arguments["class_labels"]))
        points = generator.random((2, pairs, 6, 2))
        points[:, :, 3:] = points[:, :, :3]
        yield call._replace(arguments=call.arguments | {"points": points})


KINDS = {
    "ordinary": _ordinary,
    "cotangents": _cotangents,
    "confident": _confident,
    "formats": _formats,
    "balanced": _balanced,
}
