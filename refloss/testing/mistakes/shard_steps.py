"""Mistaken steps of ranks that have a part of the classes, or of the rows: what is not reduced, or is a rank's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.kernels.shards.run import smoothing_of_all
from refloss.testing.mistakes.guess import COMMON, SELDOM, USUAL
from refloss.testing.mistakes.outcome import Wrong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.outcome import Steps
    from refloss.testing.mistakes.rows import View


def _ranks(view: View) -> list[slice]:
    """The classes of each rank that has some; none where they are not cut."""
    if "widths" not in view.inputs:
        return []
    ends = np.cumsum(view.inputs["widths"].astype(np.int64)).tolist()
    ranks = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]
    return ranks if len(ranks) > 1 else []


def _local_masses(view: View, share: float, formula: str, own: slice) -> np.ndarray:
    width = own.stop - own.start
    share = smoothing_of_all(share, formula, width) if width > 1 else share
    mass = (1 - share) * view.target
    mass[:, own] += share / width
    return np.asarray(mass * view.counted[:, None])


def local_smoothing(view: View) -> Iterator[Wrong]:
    """The loss that a rank tells, or their mean; each gradient is of a rank's own."""
    share, ranks = float(view.parameters.get("label_smoothing", 0.0)), _ranks(view)
    if not share or not ranks:
        return
    for formula in ("torch", "megatron"):
        masses = [_local_masses(view, share, formula, own) for own in ranks]
        pulled = np.concatenate([mass[:, own] for mass, own in zip(masses, ranks, strict=True)], axis=1)
        losses = [view.losses_of(view.log_p, mass) for mass in masses]
        slopes = np.where(view.counted[:, None], view.p, 0.0) - pulled
        for told in (losses[0], losses[-1], np.mean(losses, axis=0)):
            yield Wrong(losses=told, slopes=slopes)


def own_softmax(view: View) -> Iterator[Wrong]:
    """Neither the maximum nor the sum is reduced."""
    ranks = _ranks(view)
    if not ranks:
        return
    lse = np.concatenate([np.broadcast_to(_lse(view, own), view.logits[:, own].shape) for own in ranks], axis=1)
    log_p = view.logits - lse
    yield Wrong(log_p=log_p, p=np.exp(log_p))


def _lse(view: View, own: slice) -> np.ndarray:
    return np.asarray(np.logaddexp.reduce(view.logits[:, own], axis=1, keepdims=True))


def own_maximum(view: View) -> Iterator[Wrong]:
    """Sums are reduced that are relative to each rank's own maximum."""
    ranks = _ranks(view)
    if not ranks:
        return
    maxima = [view.logits[:, own].max(axis=1, keepdims=True) for own in ranks]
    total = np.sum([np.exp(_lse(view, own) - m) for own, m in zip(ranks, maxima, strict=True)], axis=0)
    terms = [np.exp(view.logits[:, own] - m) for own, m in zip(ranks, maxima, strict=True)]
    for lse in (view.maximum + np.log(total), maxima[0] + np.log(total)):
        yield Wrong(lse=lse)
        yield Wrong(lse=lse, p=view.p)
        yield Wrong(lse=lse, p=np.concatenate(terms, axis=1) / total)


def label_not_reduced(view: View) -> Iterator[Wrong]:
    """What a rank tells that has not the label: the loss of a logit of 0."""
    ranks = _ranks(view)
    if not ranks or view.labels is None:
        return
    label = view.mass.sum(axis=1) * np.where(view.target > 0, view.logits, 0.0).sum(axis=1)
    for own in (ranks[0], ranks[-1]):
        elsewhere = view.counted & ((view.labels < own.start) | (view.labels >= own.stop))
        yield Wrong(losses=view.losses + (1 - view.smoothing) * np.where(elsewhere, label, 0.0))


def counted_by_each(view: View) -> Iterator[Wrong]:
    """Each rank has all of the classes, and the sums of all ranks are added."""
    ranks = _ranks(view)
    if ranks:
        lse = view.lse + np.log(len(ranks))
        yield Wrong(lse=lse)
        yield Wrong(lse=lse, p=view.p)


def _ranks_of_rows(view: View) -> Iterator[np.ndarray]:
    """Which rank each row may be on: sequences are shared out, or the positions of each."""
    if view.reduction != "mean" or view.of_items or not view.has_labels or len(view.row_shape) != 2:
        return
    index = np.indices(view.row_shape)
    for size, place in zip(view.row_shape, index, strict=True):
        for count in (2, 3, 4, 8):
            if count <= size:
                of_place = np.repeat(np.arange(count), [len(part) for part in np.array_split(np.arange(size), count)])
                yield of_place[place].reshape(-1)


def _over_own(view: View, *, is_mean: bool) -> Iterator[Wrong]:
    for rank in _ranks_of_rows(view):
        own = np.bincount(rank, view.counted)
        if own.all():
            yield Wrong(normaliser=own[rank] * (len(own) if is_mean else 1))


def means_averaged(view: View) -> Iterator[Wrong]:
    """Each rank divides by the rows of its own that count, and the reducer takes the mean."""
    yield from _over_own(view, is_mean=True)


def means_added(view: View) -> Iterator[Wrong]:
    """The same, and the reducer adds."""
    yield from _over_own(view, is_mean=False)


STEPS: Steps = {
    "label smoothing over the classes of each rank instead of all": (COMMON, local_smoothing),
    "each rank has a softmax of its own: the sum is not all-reduced": (USUAL, own_softmax),
    "sums of exponentials are all-reduced relative to each rank's own maximum": (USUAL, own_maximum),
    "the label's logit is not all-reduced": (USUAL, label_not_reduced),
    "each rank has all of the classes: the sum is as many times too large": (USUAL, counted_by_each),
    "a mean of the means of ranks": (SELDOM, means_averaged),
    "the means of ranks are added": (SELDOM, means_added),
}
# What shows with some numbers of ranks alone.
OF_SOME_NUMBER = (means_averaged, means_added)
