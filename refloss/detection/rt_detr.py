"""What the heads that follow RT-DETR read in the same way from their configuration and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays
from refloss.configuration import flag, read
from refloss.detection import engine, localization, terms
from refloss.detection.detr import class_count, coefficient
from refloss.detection.engine import Head, Layer, Options, Term
from refloss.detection.inputs import Inputs, required
from refloss.detection.localization import Bins
from refloss.detection.matching import Matcher, Matching
from refloss.detection.targets import Targets, read_targets
from refloss.result import LossResult

EVERY = slice(None)
CORNERS = ("predicted_corners", "initial_reference_points")


class Predictions(NamedTuple):
    """The arguments of a head that hold predictions, None where it has none."""

    logits: Any
    pred_boxes: Any
    outputs_class: Any
    outputs_coord: Any
    enc_topk_logits: Any
    enc_topk_bboxes: Any
    predicted_corners: Any = None
    initial_reference_points: Any = None


class Recipe(NamedTuple):
    """What differs between heads."""

    classes: Term
    weights: tuple[str, ...]  # of which components there are; they are reported times these
    bins: Bins | None = None  # where boxes are clamped to [0, 1], and edges are distributions
    union: Callable[[list[Matching], Targets], Matching] | None = None
    drops_with_layers: bool = False  # whether the last layer keeps denoising queries without auxiliary_loss


class Denoising(NamedTuple):
    """Denoising queries: the first of all queries, some of which stand for objects that are known."""

    queries: int
    groups: int  # how often they show every object
    matching: Matching


def _matcher(config: Any) -> Matcher:
    """Costs as the configuration weighs them, of sigmoids or of a softmax."""
    of_class, of_bbox, of_giou = (coefficient(config, f"matcher_{part}_cost") for part in ("class", "bbox", "giou"))
    if not flag(config, "use_focal_loss"):
        return Matcher("softmax", of_class, of_bbox, of_giou)
    alpha, gamma = coefficient(config, "matcher_alpha"), coefficient(config, "matcher_gamma", low=0.0)
    return Matcher("focal", of_class, of_bbox, of_giou, alpha, gamma)


def bins(config: Any) -> Bins:
    """How edges are divided."""
    last = arrays.integer(read(config, "max_num_bins"), "config.max_num_bins", low=0)
    if last < 4 or last % 2:
        raise ValueError(f"config.max_num_bins is {last}; expected an even number of at least 4")
    up, reg_scale = coefficient(config, "up"), coefficient(config, "reg_scale")
    for name, value in (("up", up), ("reg_scale", reg_scale)):
        if value == 0.0:
            raise ValueError(f"config.{name} is 0; expected another number, or all offsets are the same")
    return Bins(last, up, reg_scale)


def _denoising(meta: Any, queries: int, targets: Targets) -> Denoising | None:
    """The caller's denoising_meta_values, checked."""
    if meta is None:
        return None
    name = "denoising_meta_values"
    for key in ("dn_positive_idx", "dn_num_group", "dn_num_split"):
        if not isinstance(meta, Mapping):
            raise TypeError(f"{name} is a {type(meta).__name__}; expected a mapping")
        if key not in meta:
            raise ValueError(f"{name} has no {key!r}")
    groups = arrays.integer(meta["dn_num_group"], f'{name}["dn_num_group"]', low=1)
    split_name = f'{name}["dn_num_split"]'
    split = [
        arrays.integer(part, f"{split_name}[{i}]", low=0)
        for i, part in enumerate(arrays.entries(meta["dn_num_split"], split_name, "two numbers of queries"))
    ]
    if len(split) != 2 or sum(split) != queries:
        raise ValueError(f"{split_name} is {split}; expected two numbers that add up to {queries} queries")
    positive = arrays.entries(meta["dn_positive_idx"], f'{name}["dn_positive_idx"]', "one entry for each image")
    if len(positive) != len(targets.counts):
        raise ValueError(
            f'{name}["dn_positive_idx"] has {len(positive)} entries;'
            f" expected one for each of {len(targets.counts)} images"
        )
    pairs = [
        _positive(positive[image], f'{name}["dn_positive_idx"][{image}]', int(count), groups, split[0])
        for image, count in enumerate(targets.counts)
    ]
    image = np.repeat(np.arange(len(pairs)), [len(query) for query, _ in pairs])
    nothing = np.empty(0, np.int64)
    query, number = (np.concatenate(column) for column in zip((nothing, nothing), *pairs, strict=True))
    return Denoising(split[0], groups, Matching(image, query, number))


def _positive(given: Any, name: str, count: int, groups: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The queries of an image that stand for its objects, group by group, and these objects."""
    if count == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    query = arrays.index_array(given, name).reshape(-1)
    arrays.check_shape(query, (groups * count,), name, f"{groups} groups of {count} objects")
    wrong = np.flatnonzero((query < 0) | (query >= queries))
    if wrong.size:
        raise ValueError(f"{name}[{wrong[0]}] = {query[wrong[0]]} is outside [0, {queries}), the denoising queries")
    if len(np.unique(query)) < len(query):
        raise ValueError(f"{name} has a query twice")
    return query, np.tile(np.arange(count), groups)


def _add_predictions(inputs: Inputs, given: Predictions, classes: int, *, clamp: bool) -> dict[str, int]:
    """Take the predictions of the last layer; the sizes of their axes."""
    array = inputs.add("logits", given.logits, "B", "Q", "C", shape={"C": classes})
    sizes = dict(zip("BQC", array.shape, strict=True))
    shape = {"B": sizes["B"], "Q": sizes["Q"], "4": 4}
    inputs.add("pred_boxes", given.pred_boxes, "B", "Q", "4", shape=shape, clamp=clamp)
    return sizes


def _add_layers(inputs: Inputs, given: Predictions, sizes: Mapping[str, int], bins: Bins | None) -> int:
    """Take the predictions of all layers and of the encoder; how many layers there are.

    D-FINE's models give more layers of classes and boxes than of corners: the first ones go together.
    """
    for name in Predictions._fields[2:] if bins is not None else Predictions._fields[2:6]:
        required(getattr(given, name), name, "config.auxiliary_loss is set")
    shape, clamp = {**sizes, "4": 4}, bins is not None
    added = [
        inputs.add("outputs_class", given.outputs_class, "B", "L", "Q", "C", shape=shape),
        inputs.add("outputs_coord", given.outputs_coord, "B", "L", "Q", "4", shape=shape, clamp=clamp),
    ]
    if bins is not None:
        shape["N"] = localization.EDGES * (bins.last + 1)
        added += [
            inputs.add("predicted_corners", given.predicted_corners, "B", "L", "Q", "N", shape=shape),
            inputs.add("initial_reference_points", given.initial_reference_points, "B", "L", "Q", "4", shape=shape),
        ]
    count = min(int(array.shape[1]) for array in added)
    if count == 0:
        raise ValueError("outputs_class and what goes with it have no layers")
    del shape["Q"]
    shape["P"] = inputs.add("enc_topk_logits", given.enc_topk_logits, "B", "P", "C", shape=shape).shape[1]
    inputs.add("enc_topk_bboxes", given.enc_topk_bboxes, "B", "P", "4", shape=shape, clamp=clamp)
    return count


def _add_unused(inputs: Inputs, given: Predictions) -> None:
    """Take what has no effect without auxiliary_loss."""
    for name in Predictions._fields[2:]:
        if getattr(given, name) is not None:
            inputs.add(name, getattr(given, name))


def _matching_queries(noise: Denoising | None) -> slice:
    """The queries that are not for denoising."""
    return EVERY if noise is None else slice(noise.queries, None)


def _auxiliary_layers(inputs: Inputs, recipe: Recipe, count: int, noise: Denoising | None, backend: str) -> list[Layer]:
    """The layers before the last, then the encoder's best proposals, then the denoising queries of all layers."""

    def layer(suffix: str, index: tuple[Any, ...], local: tuple[Term, ...]) -> Layer:
        others = () if recipe.bins is None else CORNERS
        return inputs.layer(suffix, "outputs_class", "outputs_coord", others=others, index=index, terms=local)

    local = _local(inputs, recipe, _matching_queries(noise), backend)
    layers = [layer(f"_aux_{i}", (EVERY, i, _matching_queries(noise)), local) for i in range(count - 1)]
    layers.append(inputs.layer(f"_aux_{count - 1}", "enc_topk_logits", "enc_topk_bboxes"))
    if noise is not None:
        part = slice(None, noise.queries)
        local = _local(inputs, recipe, part, backend)
        of_noise = [layer(f"_dn_{i}", (EVERY, i, part), local) for i in range(count)]
        layers += [each._replace(matching=noise.matching, repeats=noise.groups) for each in of_noise]
    return layers


def _local(inputs: Inputs, recipe: Recipe, queries: slice, backend: str) -> tuple[Term, ...]:
    """The terms of edges, taught by the last layer."""
    if recipe.bins is None:
        return ()
    last = (EVERY, -1, queries)
    corners, logits = (inputs.tensors[name].value[last] for name in ("predicted_corners", "outputs_class"))
    return (localization.local(recipe.bins, localization.teacher(corners, logits, backend)),)


def layered_loss(
    inputs: Inputs, given: Predictions, labels: Any, config: Any, meta: Any, recipe: Recipe, options: Options
) -> LossResult:
    """Match and compute all layers of a head."""
    classes = class_count(config)
    sizes = _add_predictions(inputs, given, classes, clamp=recipe.bins is not None)
    targets = read_targets(labels, sizes["B"], [classes] * sizes["B"])
    noise = _denoising(meta, sizes["Q"], targets)
    with_layers = flag(config, "auxiliary_loss")
    dropped = EVERY if recipe.drops_with_layers and not with_layers else _matching_queries(noise)
    layers = [inputs.layer("", "logits", "pred_boxes", index=None if dropped == EVERY else (EVERY, dropped))]
    if with_layers:
        count = _add_layers(inputs, given, sizes, recipe.bins)
        layers += _auxiliary_layers(inputs, recipe, count, noise, options.backend)
    else:
        _add_unused(inputs, given)
    head = Head(
        matcher=_matcher(config),
        terms=(terms.boxes(of_union=True), recipe.classes),
        weights={f"loss_{name}": coefficient(config, f"weight_loss_{name}") for name in recipe.weights},
        weighted=True,
        union=recipe.union,
    )
    return engine.run(head, layers, targets, inputs, options)
