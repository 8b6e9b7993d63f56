"""The random points of heads that look at masks in points: one set of draws for both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NAMES = ("matcher_points", "candidate_points", "random_points")


class Counts(NamedTuple):
    """How many points transformers asks for in a layer, and how many pairs it may match."""

    matcher: int
    candidates: int
    random: int
    pairs: int
    images: int | None = None  # of which each is matched at points of its own


def of_rf_detr(arguments: dict[str, Any]) -> list[Counts]:
    """Of the last layer, the auxiliary ones, and the encoder's."""
    config, objects = arguments["config"], sum(len(image["class_labels"]) for image in arguments["labels"])
    layers = [arguments["pred_masks"], *(arguments["outputs_masks"][:-1] if config.auxiliary_loss else ())]
    return [
        _of_masks(masks, config.mask_point_sample_ratio, config.group_detr * objects)
        for masks in (*layers, arguments["enc_outputs_masks"])
    ]


def _of_masks(masks: torch.Tensor, ratio: int, pairs: int) -> Counts:
    images, queries, height, width = masks.shape
    points = max(height, height * width // ratio)
    # Of the boxes' shape, where the masks' was meant.
    return Counts(images * queries * 4 // ratio, 3 * points, points - int(0.75 * points), pairs)


def of_mask2former(arguments: dict[str, Any]) -> list[Counts]:
    """Of the last layer, and the auxiliary ones."""
    config, objects = arguments["config"], sum(len(labels) for labels in arguments["class_labels"])
    whole = config.train_num_points
    random = whole - int(config.importance_sample_ratio * whole)
    layers = 1 + len(arguments.get("auxiliary_masks_queries_logits", ()))
    images = len(arguments["class_labels"])
    return [Counts(whole, int(whole * config.oversample_ratio), random, objects, images) for _ in range(layers)]


def draws(counts: Sequence[Counts], dtype: torch.dtype, seed: int = 0) -> dict[str, list[torch.Tensor]]:
    """Points of all layers, as an argument each; they are numbers of float32."""
    generator = torch.Generator().manual_seed(seed)

    def points(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, 2, generator=generator).to(dtype)

    return {
        "matcher_points": [
            points(each.matcher) if each.images is None else points(each.images, each.matcher) for each in counts
        ],
        "candidate_points": [points(each.pairs, each.candidates) for each in counts],
        "random_points": [points(each.pairs, each.random) for each in counts],
    }


def rand(arguments: dict[str, Any]) -> Callable[..., torch.Tensor]:
    """In the place of torch.rand: the same points, in the order in which transformers asks for them."""

    def asked() -> Iterator[torch.Tensor]:
        for matcher, candidates, random in zip(*(arguments[name] for name in NAMES), strict=True):
            yield from matcher[None] if matcher.ndim == 2 else matcher
            yield candidates
            yield random

    given = asked()

    def next_ones(*shape: int, **_: Any) -> torch.Tensor:
        points = next(given)
        # Without a pair, nothing was asked for.
        while points.shape[-2:] != shape[1:]:
            points = next(given)
        return points[None] if points.ndim == 2 else points[: shape[0]]

    return next_ones
