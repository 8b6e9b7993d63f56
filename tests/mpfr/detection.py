"""Heads that match. The assignment is a choice, which is taken from the result; everything else is its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gmpy2
import numpy as np
from gmpy2 import exp, mpfr

import refloss
from tests.mpfr import definitions, points
from tests.mpfr.boxes import corners, overlap
from tests.mpfr.definitions import ONE, ZERO, Softmax, sigmoid, sign, soft_target
from tests.mpfr.masks import Resampling, dice_of
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, Real, exact, real, reals

TEMPERATURE = 5
LEAST_QUALITY = 0.01
CLAMPED = ("d_fine_object_detection", "deimv2_object_detection")


class Scene(NamedTuple):
    """A call."""

    head: str
    arguments: dict[str, Any]
    cotangent: float


class _Layer(NamedTuple):
    """A layer of a result, and where its gradients go."""

    scene: Scene
    values: dict[str, np.ndarray]  # MPFR numbers
    slopes: dict[str, np.ndarray]
    suffix: str
    index: Any
    inputs: dict[str, str]
    weights: dict[str, float]
    pairs: list[tuple[int, int, int]]
    num_boxes: Real
    box_pairs: list[tuple[int, int, int]]
    box_num_boxes: Real
    points: np.ndarray | None = None  # [M, P, 2] that masks are looked at in

    def part(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Its part of an input and of the gradient, as views."""
        name = self.inputs[what]
        return self.values[name][self.index], self.slopes[name][self.index]

    def coefficient(self, component: str) -> Real:
        """What a component's derivatives are multiplied by, but for its normaliser."""
        return real(self.scene.cotangent) * real(self.weights[component])

    def target(self, image: int, number: int) -> list[Real]:
        """An object's box."""
        return reals(self.scene.arguments["labels"][image]["boxes"][number])

    def label(self, image: int, number: int) -> int:
        """An object's class."""
        return int(self.scene.arguments["labels"][image]["class_labels"][number])

    def box(self, image: int, query: int) -> list[Real]:
        """A predicted box, clamped where the head does that."""
        box: list[Real] = list(self.part("pred_boxes")[0][image, query])
        return [min(max(x, ZERO), ONE) for x in box] if self.scene.head in CLAMPED else box

    def iou(self, image: int, query: int, number: int) -> Real:
        """Of a predicted box and an object's."""
        return overlap(self.box(image, query), self.target(image, number), centered=True).iou


def compare(scene: Scene) -> Iterator[Comparison]:
    """A head's gradients and its total."""
    with gmpy2.context(precision=PRECISION):
        yield from _compare(scene)


def _compare(scene: Scene) -> Iterator[Comparison]:
    call = getattr(refloss, scene.head)
    results = {
        name: call(**scene.arguments, grad_output=scene.cotangent, grad_dtype=dtype) for name, dtype in DTYPES.items()
    }
    result = results["float64"]
    values = {name: _exactly(scene.arguments[name]) for name in result.grads}
    slopes = {name: np.full(array.shape, ZERO, object) for name, array in values.items()}
    total = ZERO
    for recorded in result.layers:
        layer = _Layer(
            scene,
            values,
            slopes,
            recorded.suffix,
            recorded.index,
            dict(recorded.inputs),
            dict(recorded.weights),
            [(int(i), int(q), int(n)) for i, q, n in recorded.pairs.table],
            real(recorded.pairs.num_boxes),
            [(int(i), int(q), int(n)) for i, q, n in recorded.of_boxes.table],
            real(recorded.of_boxes.num_boxes),
            result.intermediates.get(f"points{recorded.suffix}"),
        )
        total += _class_loss(layer) + _box_loss(layer)
        if "loss_mask" in layer.weights and layer.points is None:
            total += _mask_loss(layer)
        if layer.points is not None:
            total += _point_loss(layer, layer.points)
        if "loss_fgl" in layer.weights:
            total += _edge_loss(layer)
    for format_name, of_format in results.items():
        for name, got in of_format.grads.items():
            yield Comparison(
                name, format_name, got, exact(slopes[name].reshape(-1), got.shape), _describing(scene, name)
            )
    yield Comparison("loss", "float64", np.asarray([result.loss]), exact([total], (1,)), _describing(scene, "logits"))


def _describing(scene: Scene, name: str) -> Callable[[int], str]:
    array = scene.arguments[name]

    def describe(index: int) -> str:
        place = tuple(int(k) for k in np.unravel_index(index, array.shape))
        whole = [float(x) for x in array[place[:-1]]] if array.shape[-1] <= 12 else float(array[place])
        return f"{array.dtype} {name}{list(place)} of {array.shape}, grad_output {scene.cotangent!r}, its row {whole}"

    return describe


def _exactly(array: np.ndarray) -> np.ndarray:
    result = np.empty(array.size, object)
    result[:] = reals(array)
    return result.reshape(array.shape)


def _class_loss(layer: _Layer) -> Real:
    """The component of classes times its weight; its gradient is written."""
    head = layer.scene.head
    if head in ("object_detection", "segmentation"):
        return _softmax_classes(layer)
    component = next(name for name in ("loss_ce", "loss_vfl", "loss_mal") if name in layer.weights)
    coefficient = layer.coefficient(component) / layer.num_boxes
    logits, slopes = layer.part("logits")
    define, mask = _sigmoid_classes(layer)
    total = []
    for place in np.ndindex(*logits.shape):
        if mask is None or mask[place]:
            value, slope = define(place, logits[place])
            total.append(value)
            slopes[place] += coefficient * slope
    return real(layer.weights[component]) * gmpy2.fsum(total) / layer.num_boxes


def _softmax_classes(layer: _Layer) -> Real:
    """Cross-entropy with no object as the last class, whose weight is eos_coefficient; the weighted mean."""
    logits, slopes = layer.part("logits")
    config = layer.scene.arguments["config"]
    labels = np.full(logits.shape[:2], config["num_labels"])
    for image, query, number in layer.pairs:
        labels[image, query] = layer.label(image, number)
    weights = dict.fromkeys(range(config["num_labels"]), ONE)
    weights[config["num_labels"]] = real(config["eos_coefficient"])
    normaliser = gmpy2.fsum([weights[int(label)] for label in labels.reshape(-1)])
    total = []
    for place in np.ndindex(*labels.shape):
        weight = weights[int(labels[place])] / normaliser
        loss, of_row = Softmax(list(logits[place])).of_label(int(labels[place]))
        total.append(weight * loss)
        factor = layer.coefficient("loss_ce") * weight
        slopes[place] += np.array([factor * slope for slope in of_row], object)
    return real(layer.weights["loss_ce"]) * gmpy2.fsum(total)


def _sigmoid_classes(layer: _Layer) -> tuple[Callable[[tuple[int, ...], Real], tuple[Real, Real]], np.ndarray | None]:
    """Value and derivative of a class at a place, and which classes count."""
    head, config = layer.scene.head, layer.scene.arguments["config"]
    logits = layer.part("logits")[0]
    if head == "grounding_dino_object_detection":
        target, mask = _tokens(layer, logits.shape)
        alpha = real(config["focal_alpha"])
        return lambda place, x: _focal(x, ONE if target[place] else ZERO, alpha), mask
    meant: dict[tuple[int, ...], tuple[int, int, int]] = {}
    for image, query, number in layer.pairs:
        meant[image, query, layer.label(image, number)] = (image, query, number)
    if head.startswith("deformable"):
        alpha = real(config["focal_alpha"])
        if config["num_labels"] < logits.shape[2]:
            matched = {place[:2] for place in meant}
            for image, query in np.ndindex(*logits.shape[:2]):
                if (image, query) not in matched:
                    meant[image, query, config["num_labels"]] = (image, query, -1)
        return lambda place, x: _focal(x, ONE if place in meant else ZERO, alpha), None
    quality = {place: layer.iou(*pair) for place, pair in meant.items()}
    if head in ("lw_detr_object_detection", "rf_detr_instance_segmentation"):
        alpha = real(config["focal_alpha"])
        return lambda place, x: _iou_aware(x, quality.get(place), alpha), None
    gamma = real(config["focal_loss_gamma"])
    if head == "deimv2_object_detection":
        alpha = ONE if config["mal_alpha"] is None else real(config["mal_alpha"])
        return lambda place, x: _matching_aware(x, quality.get(place), alpha, gamma), None
    alpha = real(config["focal_loss_alpha"])
    return lambda place, x: _varifocal(x, quality.get(place), alpha, gamma), None


def _focal(x: Real, t: Real, alpha: Real) -> tuple[Real, Real]:
    value, slope, _ = definitions.sigmoid_focal(x, t, alpha, mpfr(2))
    return value, slope


def _varifocal(x: Real, iou: Real | None, alpha: Real, gamma: Real) -> tuple[Real, Real]:
    if iou is None:
        return definitions.detached_focal(x, alpha, gamma)
    value, slope = soft_target(x, iou)
    return iou * value, iou * slope


def _matching_aware(x: Real, iou: Real | None, alpha: Real, gamma: Real) -> tuple[Real, Real]:
    return definitions.detached_focal(x, alpha, gamma) if iou is None else soft_target(x, iou**gamma)


def _iou_aware(x: Real, iou: Real | None, alpha: Real) -> tuple[Real, Real]:
    if iou is None:
        return _focal(x, ZERO, mpfr(-1))
    return soft_target(x, max(sigmoid(x) ** alpha * iou ** (1 - alpha), real(LEAST_QUALITY)))


def _tokens(layer: _Layer, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The target of every token, and which tokens count; rows of joined maps, with transformers' offsets."""
    arguments = layer.scene.arguments
    maps = arguments["label_maps"]
    joined = np.concatenate(maps).astype(bool)
    target = np.zeros(shape, bool)
    for image, query, number in layer.pairs:
        target[image, query] = joined[layer.label(image, number) + (len(maps[image]) if image else 0)]
    return target, np.broadcast_to(arguments["text_mask"], shape)


def _box_loss(layer: _Layer) -> Real:
    """L1 and 1 − GIoU times their weights; clamped coordinates have no gradient outside."""
    boxes, slopes = layer.part("pred_boxes")
    of_l1, of_giou = (layer.coefficient(name) / layer.box_num_boxes for name in ("loss_bbox", "loss_giou"))
    distances, misfits = [], []
    for image, query, number in layer.box_pairs:
        box, target = layer.box(image, query), layer.target(image, number)
        loss, first, _ = overlap(box, target, centered=True).of_giou
        misfits.append(loss)
        distances.append(gmpy2.fsum([abs(a - b) for a, b in zip(box, target, strict=True)]))
        for k, slope in enumerate(first):
            if box[k] == boxes[image, query, k]:
                slopes[image, query, k] += of_giou * slope + of_l1 * sign(box[k] - target[k])
    total = real(layer.weights["loss_bbox"]) * gmpy2.fsum(distances)
    return (total + real(layer.weights["loss_giou"]) * gmpy2.fsum(misfits)) / layer.box_num_boxes


def _mask_loss(layer: _Layer) -> Real:
    """Focal loss, a mean over pixels, and dice loss of upsampled masks."""
    planes, slopes = layer.part("pred_masks")
    labels = layer.scene.arguments["labels"]
    height, width = np.max([own["masks"].shape[1:] for own in labels], axis=0).tolist()
    resampling = Resampling(planes.shape[2:], (height, width))
    pixels = mpfr(height * width)
    total = ZERO
    for image, query, number in layer.pairs:
        padded = np.zeros((height, width))
        mask = labels[image]["masks"][number]
        padded[: mask.shape[0], : mask.shape[1]] = mask
        t = reals(padded)
        x = resampling.widened(list(planes[image, query].reshape(-1)))
        focal = [_focal(a, b, mpfr(0.25)) for a, b in zip(x, t, strict=True)]
        of_mask = dice_of(x, t)
        of_focal = layer.coefficient("loss_mask") / layer.num_boxes / pixels
        of_dice = layer.coefficient("loss_dice") / layer.num_boxes
        cotangents = [of_focal * a + of_dice * b for (_, a), b in zip(focal, of_mask.of_logits, strict=True)]
        back = resampling.handed_back(cotangents, planes.shape[2] * planes.shape[3])
        slopes[image, query] += np.array(back, object).reshape(planes.shape[2:])
        total += real(layer.weights["loss_mask"]) * gmpy2.fsum([value for value, _ in focal]) / pixels
        total += real(layer.weights["loss_dice"]) * of_mask.loss
    return total / layer.num_boxes


def _point_loss(layer: _Layer, chosen: np.ndarray) -> Real:
    """Cross-entropy, a mean over points, and dice loss of masks at points, against the nearest pixels."""
    planes, slopes = layer.part("pred_masks")
    labels = layer.scene.arguments["labels"]
    names = ("loss_mask_ce", "loss_mask_dice")
    of_entropy, of_dice = (layer.coefficient(name) / layer.num_boxes for name in names)
    total = ZERO
    for (image, query, number), of_pair in zip(layer.pairs, chosen, strict=True):
        t = [points.nearest(labels[image]["masks"][number], point) for point in of_pair]
        found = points.loss_of(planes[image, query], of_pair, t, of_entropy, of_dice)
        slopes[image, query] += found.gradient
        total += real(layer.weights[names[0]]) * found.entropy + real(layer.weights[names[1]]) * found.dice
    return total / layer.num_boxes


def offsets(bins: int, up: float, reg_scale: float) -> list[Real]:
    """W(0) ... W(bins)."""
    reach = abs(real(up) * real(reg_scale))
    step = (reach + 1) ** (mpfr(2) / (bins - 2))
    half = bins // 2
    inner = [sign(mpfr(i - half)) * (step ** abs(i - half) - 1) for i in range(1, bins)]
    return [-2 * reach, *inner, 2 * reach]


def mixture(distance: Real, values: list[Real]) -> list[Real]:
    """The distribution over two bins whose mean is a distance."""
    last = len(values) - 1
    result = [ZERO] * (last + 1)
    left = sum(value <= distance for value in values) - 1
    if left < 0 or left >= last:
        result[0 if left < 0 else last] = ONE
        return result
    right = (distance - values[left]) / (values[left + 1] - values[left])
    result[left], result[left + 1] = 1 - right, right
    return result


def edges(reference: list[Real], box: list[Real], reg_scale: float) -> list[Real]:
    """How far the edges of a box, given by its corners, are from a reference."""
    x, y, w, h = reference
    scale = abs(real(reg_scale))
    of_x, of_y = w / scale + real(1e-16), h / scale + real(1e-16)
    raw = [(x - box[0]) / of_x, (y - box[1]) / of_y, (box[2] - x) / of_x, (box[3] - y) / of_y]
    return [each - scale / 2 for each in raw]


def _edge_loss(layer: _Layer) -> Real:
    """Fine-grained localisation of matched queries, and distillation of all from the last layer."""
    arguments = layer.scene.arguments
    config = arguments["config"]
    values = offsets(config["max_num_bins"], config["up"], config["reg_scale"])
    logits, slopes = (part.reshape(*part.shape[:2], 4, -1) for part in layer.part("predicted_corners"))
    last = (slice(None), -1, layer.index[2])
    taught = layer.values["predicted_corners"][last].reshape(logits.shape)
    is_own_teacher = bool((logits == taught).all())
    numbers = {(image, query): number for image, query, number in layer.box_pairs}
    shares = _shares(layer, logits.shape[:2], numbers, layer.values["outputs_class"][last])
    total = ZERO
    for image, query in np.ndindex(*logits.shape[:2]):
        number, targets, of_fine = numbers.get((image, query)), None, ZERO
        if number is not None:
            reference = list(layer.part("initial_reference_points")[0][image, query])
            box = corners(layer.target(image, number))
            targets = [mixture(each, values) for each in edges(reference, box, config["reg_scale"])]
            of_fine = layer.iou(image, query, number) / layer.box_num_boxes
        for edge in range(4):
            row = list(logits[image, query, edge])
            of_row = [ZERO] * len(row)
            if targets is not None:
                loss, gradient = Softmax(row).of_distribution(targets[edge])
                total += real(layer.weights["loss_fgl"]) * of_fine * loss
                factor = layer.coefficient("loss_fgl") * of_fine
                of_row = [factor * slope for slope in gradient]
            if not is_own_teacher:
                divergence, gradient = _distilled(row, list(taught[image, query, edge]))
                share = shares[image, query]
                total += real(layer.weights["loss_ddf"]) * share * divergence
                factor = layer.coefficient("loss_ddf") * share
                of_row = [a + factor * b for a, b in zip(of_row, gradient, strict=True)]
            slopes[image, query, edge] += np.array(of_row, object)
    return total


def _shares(
    layer: _Layer, shape: tuple[int, ...], numbers: dict[tuple[int, int], int], taught: np.ndarray
) -> dict[tuple[int, ...], Real]:
    """What an edge of each query counts: both kinds are averaged, and weighted by roots of their numbers."""
    every, matched = 4 * shape[0] * shape[1], 4 * len(numbers)
    roots = gmpy2.sqrt(mpfr(matched) / shape[0]), gmpy2.sqrt(mpfr(every - matched) / shape[0])
    shares: dict[tuple[int, ...], Real] = {}
    for place in np.ndindex(*shape):
        if place in numbers:
            shares[place] = layer.iou(*place, numbers[place]) * roots[0] / (roots[0] + roots[1]) / matched
        else:
            highest = sigmoid(max(taught[place]))
            shares[place] = highest * roots[1] / (roots[0] + roots[1]) / (every - matched)
    return shares


def _distilled(row: list[Real], teacher: list[Real]) -> tuple[Real, list[Real]]:
    """T²·KL of the teacher's distribution from a row's, and its gradient T·(s − t)."""

    def softened(logits: list[Real]) -> list[Real]:
        top = max(logits)
        return [(x - top) / TEMPERATURE for x in logits]

    both = softened(row), softened(teacher)
    terms = [[exp(x) for x in each] for each in both]
    totals = [gmpy2.fsum(each) for each in terms]
    s, t = ([term / total for term in each] for each, total in zip(terms, totals, strict=True))
    shift = gmpy2.log(totals[0]) - gmpy2.log(totals[1])
    divergence = gmpy2.fsum([p * (b - a + shift) for p, a, b in zip(t, *both, strict=True)])
    return TEMPERATURE**2 * divergence, [TEMPERATURE * (a - b) for a, b in zip(s, t, strict=True)]
