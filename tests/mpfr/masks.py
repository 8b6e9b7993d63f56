"""Dice loss of masks, bilinear resampling with its adjoint, and semantic segmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import ml_dtypes
import numpy as np

import refloss
from tests.mpfr.definitions import ONE, ZERO, Softmax, sigmoid
from tests.mpfr.elements import COTANGENTS, INPUT_DTYPES
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

IGNORED = 255
# Sums of what should cancel, of quotients rounded to PRECISION bits, are below this part of the cotangent.
NOISE = gmpy2.exp2(-PRECISION + 60)


class Dice(NamedTuple):
    """A mask's value, and its derivatives in probabilities and targets."""

    loss: Real
    of_logits: list[Real]
    of_targets: list[Real]


def dice_of(x: list[Real], t: list[Real]) -> Dice:
    """1 − (2·Σ p·t + 1)/(Σ p + Σ t + 1), which is Σ (p·(1 − t) + (1 − p)·t) over the same."""
    above, below = [sigmoid(each) for each in x], [sigmoid(-each) for each in x]
    missed = gmpy2.fsum([p * (1 - target) + q * target for p, q, target in zip(above, below, t, strict=True)])
    bottom = gmpy2.fsum([*above, *t, ONE])
    square = bottom * bottom
    rest = bottom - missed
    return Dice(
        missed / bottom,
        [(rest - 2 * target * bottom) / square * p * q for p, q, target in zip(above, below, t, strict=True)],
        [(rest - 2 * p * bottom) / square for p in above],
    )


class Masks(NamedTuple):
    """A call: logits and targets [N, P]."""

    logits: np.ndarray
    targets: np.ndarray
    num_boxes: float = 1.0
    cotangent: Any = 1.0
    reduction: str = "sum"


def dice(masks: Masks) -> Iterator[Comparison]:
    """refloss.dice."""
    with gmpy2.context(precision=PRECISION):
        yield from _dice(masks)


def _dice(masks: Masks) -> Iterator[Comparison]:
    each = reals(np.broadcast_to(masks.cotangent, len(masks.logits)))
    divisor = real(masks.num_boxes) if masks.reduction == "sum" else ONE
    losses: list[Real] = []
    of_logits: list[Real] = []
    of_targets: list[Real] = []
    for x, t, c in zip(masks.logits, masks.targets, each, strict=True):
        of_mask = dice_of(reals(x), reals(t))
        losses.append(of_mask.loss)
        of_logits += [c / divisor * slope for slope in of_mask.of_logits]
        of_targets += [c / divisor * slope for slope in of_mask.of_targets]

    def describe(index: int) -> str:
        row, column = divmod(index, masks.logits.shape[1])
        x, t = (float(array[row, column]) for array in (masks.logits, masks.targets))
        formats = f"{masks.logits.dtype}/{masks.targets.dtype} {masks.reduction}"
        cotangent = float(np.broadcast_to(masks.cotangent, len(masks.logits))[row])
        where = f"mask {row} of {masks.logits.shape}, pixel {column}"
        if masks.logits.shape[1] <= 4:
            x, t = (array[row].astype(float).tolist() for array in (masks.logits, masks.targets))
        return f"{formats} {where}: x={x} t={t}, grad_output {cotangent!r}, num_boxes {masks.num_boxes}"

    options = {"reduction": masks.reduction, "grad_output": masks.cotangent}
    for format_name, dtype in DTYPES.items():
        result = refloss.dice(masks.logits, masks.targets, masks.num_boxes, **options, grad_dtype=dtype)
        got = result.grads["inputs"]
        yield Comparison("inputs", format_name, got, exact(of_logits, got.shape), describe)
    got = result.grads["targets"]
    yield Comparison("targets", str(got.dtype), got, exact(of_targets, got.shape), describe)
    expected = losses if masks.reduction == "none" else [gmpy2.fsum(losses) / divisor]
    loss = np.asarray(result.loss)
    yield Comparison("loss", "float64", loss, exact(expected, loss.shape), lambda row: describe(row * got.shape[1]))


DrawMasks = Callable[[np.random.Generator, int], Iterator[Masks]]


def _drawn(generator: np.random.Generator, size: int, pixels: int, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    shape = (max(1, size // pixels) | 1, pixels)
    x = generator.standard_normal(shape) * scale
    t = np.where(generator.random(shape) < 0.5, generator.random(shape) < 0.4, generator.random(shape))
    return x.astype(np.float32), t.astype(np.float32)


def ordinary_masks(generator: np.random.Generator, size: int) -> Iterator[Masks]:
    for pixels in (3, 49, 1023):
        x, t = _drawn(generator, size // 3, pixels)
        yield Masks(x, np.round(t) if pixels == 49 else t)


def mask_cotangents(generator: np.random.Generator, size: int) -> Iterator[Masks]:
    for k, cotangent in enumerate(COTANGENTS):
        x, t = _drawn(generator, size // 5, (1, 2, 9, 100, 1000)[k])
        if k % 2:
            yield Masks(x, t, cotangent=generator.choice(COTANGENTS, len(x)), reduction="none")
        else:
            yield Masks(x, t, 7.3, cotangent)


def good_masks(generator: np.random.Generator, size: int) -> Iterator[Masks]:
    """Masks that fit, and hard misses."""
    for margin in (5, 20, 60):
        x, t = _drawn(generator, size // 3, 50)
        t = np.round(t)
        x = (np.abs(x) + margin) * (2 * t - 1)
        x[::3, ::7] *= -1
        yield Masks(x.astype(np.float32), t, 2.5, reduction="none", cotangent=0.7)


def crossing_masks(generator: np.random.Generator, size: int) -> Iterator[Masks]:
    """Near where a target's, or a logit's, derivative is 0: 2·p and 2·t are 1 − ℓ."""
    for pixels in (1, 2, 10, 100):
        x, t = (array.astype(np.float64) for array in _drawn(generator, size // 4, pixels))
        for _ in range(30):
            p = 1 / (1 + np.exp(-x))
            rest = (2 * (p * t).sum(axis=1) + 1) / (p.sum(axis=1) + t.sum(axis=1) + 1)
            x[:, 0] = -np.log(2 / rest - 1)
            t[:, -1] = rest / 2 if pixels > 1 else t[:, -1]
        dtype = np.float64 if pixels == 10 else np.float32
        yield Masks(x.astype(dtype), t.astype(np.float32), reduction="none", cotangent=1 / 3)


def mixed_masks(generator: np.random.Generator, size: int) -> Iterator[Masks]:
    for k in range(4):
        x, t = _drawn(generator, size // 4, 20)
        yield Masks(x.astype(INPUT_DTYPES[k]), t.astype(INPUT_DTYPES[(k + 1) % 4]), 3.0, COTANGENTS[k])


DICE: dict[str, DrawMasks] = {
    "ordinary": ordinary_masks,
    "cotangents": mask_cotangents,
    "good masks": good_masks,
    "zero crossings": crossing_masks,
    "mixed formats": mixed_masks,
}


class Place(NamedTuple):
    """Where an output lies between two elements; the weights are divided by twice the number of outputs."""

    first: int
    second: int
    of_first: int
    of_second: int


def places(size: int, resized: int) -> list[Place]:
    """Output J of N at (J + ½)·n/N − ½, held at 0 from below (align_corners=False), in integers."""
    result = []
    for output in range(resized):
        numerator = max((2 * output + 1) * size - resized, 0)
        first, of_second = divmod(numerator, 2 * resized)
        result.append(Place(first, min(first + 1, size - 1), 2 * resized - of_second, of_second))
    return result


class Resampling:
    """Planes [h, w] to [H, W] and back; an element with weight 0 has no part, whatever it holds."""

    def __init__(self, source: tuple[int, int], resized: tuple[int, int]) -> None:
        self._width = source[1]
        self.scale = 4 * resized[0] * resized[1]
        vertical, horizontal = (places(have, want) for have, want in zip(source, resized, strict=True))
        self.outputs = [
            [
                (y * self._width + x, by_y * by_x)
                for y, by_y in ((v.first, v.of_first), (v.second, v.of_second))
                for x, by_x in ((h.first, h.of_first), (h.second, h.of_second))
                if by_y * by_x != 0
            ]
            for v in vertical
            for h in horizontal
        ]

    def widened(self, plane: list[Real]) -> list[Real]:
        """The outputs, flat."""
        return [sum((weight * plane[at] for at, weight in output), ZERO) / self.scale for output in self.outputs]

    def handed_back(self, cotangents: list[Real], size: int) -> list[Real]:
        """The adjoint; outputs whose cotangent is 0 hand nothing back."""
        result = [ZERO] * size
        for output, cotangent in zip(self.outputs, cotangents, strict=True):
            if cotangent != 0:
                for at, weight in output:
                    result[at] += weight * cotangent
        return [value / self.scale for value in result]


class Images(NamedTuple):
    """A call: logits [B, C, h, w] and labels [B, H, W]."""

    logits: np.ndarray
    labels: np.ndarray
    auxiliary: np.ndarray | None = None
    auxiliary_weight: float = 0.4
    cotangent: float = 1.0
    items: float | None = None


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[Real, list[Real]]:
    """The sum over pixels, and the gradient flat."""
    classes, source = logits.shape[1], logits.shape[2:]
    resampling = Resampling((source[0], source[1]), (labels.shape[1], labels.shape[2]))
    total: list[Real] = []
    gradient: list[Real] = []
    for image, own in zip(logits, labels, strict=True):
        planes = [reals(plane) for plane in image]
        cotangents = [[ZERO] * own.size for _ in range(classes)]
        wide = [resampling.widened(plane) for plane in planes]
        for pixel, label in enumerate(own.reshape(-1).tolist()):
            if label == IGNORED:
                continue
            loss, slopes = Softmax([plane[pixel] for plane in wide]).of_label(label)
            total.append(loss)
            for plane, slope in zip(cotangents, slopes, strict=True):
                plane[pixel] = slope
        for plane in cotangents:
            gradient += resampling.handed_back(plane, source[0] * source[1])
    return gmpy2.fsum(total), gradient


def semantic_segmentation(images: Images) -> Iterator[Comparison]:
    """refloss.semantic_segmentation."""
    with gmpy2.context(precision=PRECISION):
        yield from _semantic_segmentation(images)


def _semantic_segmentation(images: Images) -> Iterator[Comparison]:
    counted = int(np.count_nonzero(images.labels != IGNORED))
    items = real(counted if images.items is None else images.items)
    parts = {"logits": (images.logits, ONE)}
    if images.auxiliary is not None:
        parts["auxiliary_logits"] = (images.auxiliary, real(images.auxiliary_weight))
    loss, slopes = ZERO, {}
    for name, (logits, weight) in parts.items():
        total, gradient = _cross_entropy(logits, images.labels)
        factor = weight * real(images.cotangent) / items
        slopes[name] = [ZERO if abs(slope) < NOISE else factor * slope for slope in gradient]
        loss += weight * total / items

    def describing(name: str) -> Callable[[int], str]:
        logits = parts[name][0]

        def describe(index: int) -> str:
            place = tuple(int(k) for k in np.unravel_index(index, logits.shape))
            shapes = f"{logits.dtype} {logits.shape} to {images.labels.shape[1:]}"
            shown = f", logits {logits.astype(float).tolist()}, labels {images.labels.tolist()}" * (logits.size <= 12)
            return f"{shapes} {place}, items {images.items}, grad_output {images.cotangent!r}{shown}"

        return describe

    options: dict[str, Any] = {
        "auxiliary_logits": images.auxiliary,
        "auxiliary_loss_weight": images.auxiliary_weight,
        "num_items_in_batch": images.items,
        "grad_output": images.cotangent,
    }
    for format_name, dtype in DTYPES.items():
        result = refloss.semantic_segmentation(images.logits, images.labels, **options, grad_dtype=dtype)
        for name, values in slopes.items():
            got = result.grads[name]
            if got.dtype == dtype:
                yield Comparison(name, format_name, got, exact(values, got.shape), describing(name))
    yield Comparison("loss", "float64", np.asarray([result.loss]), exact([loss], (1,)), describing("logits"))


DrawImages = Callable[[np.random.Generator, int], Iterator[Images]]


def _images(
    generator: np.random.Generator, size: int, classes: int, source: tuple[int, int], resized: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    count = max(1, size // (classes * source[0] * source[1]))
    logits = (generator.standard_normal((count, classes, *source)) * 3).astype(np.float32)
    labels = generator.integers(classes, size=(count, *resized))
    labels[generator.random(labels.shape) < 0.2] = IGNORED
    labels[:, 0, 0] = 0
    return logits, labels


def ordinary_images(generator: np.random.Generator, size: int) -> Iterator[Images]:
    for source, resized in (((8, 8), (16, 16)), ((7, 9), (10, 11)), ((6, 5), (6, 5))):
        yield Images(*_images(generator, size // 3, 5, source, resized))


def image_cotangents(generator: np.random.Generator, size: int) -> Iterator[Images]:
    for k, cotangent in enumerate(COTANGENTS):
        logits, labels = _images(generator, size // 5, 3, (7, 5), (9, 8))
        auxiliary = _images(generator, size // 5, 3, (3, 5), (9, 8))[0][: len(logits)]
        auxiliary = np.resize(auxiliary, (len(logits), 3, 3, 5))
        items = (None, 7.3)[k % 2]
        yield Images(logits, labels, auxiliary if k % 2 else None, cotangent=cotangent, items=items)


def same_size(generator: np.random.Generator, size: int) -> Iterator[Images]:
    """A pixel is its own: nothing leaks from ignored or masked neighbours."""
    for k in range(3):
        logits, labels = _images(generator, size // 3, 4, (6, 5), (6, 5))
        ignored = np.broadcast_to((labels == IGNORED)[:, None], logits.shape)
        if k == 0:
            logits[ignored] = np.nan
        if k == 1:
            others = (np.arange(4)[:, None, None] != labels[:, None]) & (generator.random(logits.shape) < 0.3)
            logits[others] = -np.inf
        yield Images(logits, labels, cotangent=(1.0, 0.7, 1 / 3)[k])


def offset_images(generator: np.random.Generator, size: int) -> Iterator[Images]:
    for offset in (1e4, 1e6, -1e6):
        logits, labels = _images(generator, size // 3, 4, (6, 5), (9, 11))
        yield Images((logits + offset).astype(np.float32), labels, cotangent=1 / 7)


def balanced_images(_: np.random.Generator, size: int) -> Iterator[Images]:
    """Equal logits and labels that balance: zeros."""
    for classes, resized in ((2, (4, 4)), (2, (6, 6)), (3, (3, 3)), (4, (4, 8))):
        count = max(1, size // 4 // (classes * 4))
        logits = np.zeros((count, classes, 2, 2), np.float32)
        pixels = np.arange(resized[0] * resized[1]).reshape(resized)
        yield Images(logits, np.broadcast_to(pixels % classes, (count, *resized)).copy(), cotangent=0.1)


def confident_images(generator: np.random.Generator, size: int) -> Iterator[Images]:
    for margin in (20, 50, 90):
        logits, labels = _images(generator, size // 3, 4, (5, 6), (5, 12))
        logits[:, 1] += margin
        labels[labels != IGNORED] = 1
        labels[:, ::4] = 0
        yield Images(logits, labels, cotangent=0.7)


def mixed_images(generator: np.random.Generator, size: int) -> Iterator[Images]:
    for k, dtype in enumerate((ml_dtypes.bfloat16, np.float16, np.float64)):
        logits, labels = _images(generator, size // 3, 4, (5, 6), (8, 6))
        yield Images(logits.astype(dtype), labels, cotangent=COTANGENTS[k])


IMAGES: dict[str, DrawImages] = {
    "ordinary": ordinary_images,
    "cotangents": image_cotangents,
    "same size": same_size,
    "offsets": offset_images,
    "balanced": balanced_images,
    "confident": confident_images,
    "mixed formats": mixed_images,
}
