"""Mistakes about labels, masses and means of rows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.guess import COMMON, POSSIBLE, SELDOM, USUAL
from refloss.testing.mistakes.outcome import Wrong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.outcome import Steps
    from refloss.testing.mistakes.rows import View

CHUNKS = (2, 3, 4, 5, 8, 16)
GRIDS = (65535, 65536)  # programs that rows are given to


INCLUDED = "ignored rows are included"
COUNTED = "ignored rows are included, in the count as well"
LEAK = "ignored rows are included: their gradient is not 0"
FIRST_UPSTREAM = "the first element of the upstream gradient is used for all rows"


def leaking(view: View, *, counted_as_well: bool = False) -> Iterator[Wrong]:
    """Ignored rows have a loss, for the class that their label stands for or wraps to."""
    if view.labels is None or view.counted.all():
        return
    classes = view.logits.shape[-1]
    ignored_rows = ~view.counted
    if view.normaliser == 0 and not counted_as_well:
        return
    ignored = view.labels[ignored_rows]
    wrapped = {int(label) % classes for label in np.unique(ignored)[:2]} if classes else set()
    kept_out = [view.without_label] if view.without_label.any() else []
    for known, out in itertools.product(
        sorted({0, classes - 1, *wrapped}), [*kept_out, np.zeros(len(ignored_rows), bool)]
    ):
        if (out == ignored_rows).all():
            continue
        labels = np.where(view.counted, view.labels, known)
        target = (labels[:, None] == np.arange(classes)).astype(np.float64)
        mass = view.weight * ((1 - view.smoothing) * target + view.smoothing / max(classes, 1)) * ~out[:, None]
        undefined = np.where(view.poisoned & ~out, np.nan, 0.0)
        slopes = view.slopes_of(view.p, mass) + undefined[:, None]
        yield Wrong(losses=view.losses_of(view.log_p, mass) + undefined, slopes=slopes, squared=~out)


def leaking_gradient(view: View) -> Iterator[Wrong]:
    """The gradient of a row without a label, or for the class that its label stands for."""
    if view.has_labels and not view.counted.all() and view.normaliser:
        out = view.counted[:, None]
        pushed = np.zeros(()) if view.is_log else view.p
        yield Wrong(slopes=np.where(out, view.slopes, pushed))
        yield Wrong(slopes=np.where(out, view.slopes, pushed - (np.arange(view.logits.shape[-1]) == 0)))


def leaking_counted(view: View) -> Iterator[Wrong]:
    """The same, divided by as many."""
    if view.reduction == "mean" and not view.of_items:
        for wrong in leaking(view, counted_as_well=True):
            assert view.labels is not None
            count = view.target @ view.weight
            yield wrong._replace(normaliser=float(len(view.counted)))
            if view.without_label.any():
                yield wrong._replace(normaliser=float((~view.without_label).sum()))
            if (view.weight != 1).any():
                yield wrong._replace(normaliser=float(count.sum() + view.weight[0] * (~view.counted).sum()))


def over_others(view: View) -> Iterator[Wrong]:
    """ε/(K − 1) on the other classes, 1 − ε on the label."""
    classes = view.logits.shape[-1]
    if view.smoothing and classes > 1:
        smoothing = min(view.smoothing * classes / (classes - 1), 1.0)
        spread = (1 - smoothing) * view.target + smoothing / classes
        yield Wrong(mass=view.weight * spread * view.counted[:, None], kept=1 - smoothing)


def over_all_rows(view: View) -> Iterator[Wrong]:
    """Ignored rows are in the count; of two sides both, or one."""
    if view.reduction == "mean" and not view.of_items and "weight" not in view.inputs:
        yield Wrong(normaliser=float(len(view.counted)))


def first_cotangent(view: View) -> Iterator[Wrong]:
    """One number for all rows."""
    if view.reduction == "none" and view.cotangent.size > 1:
        yield Wrong(cotangent=view.cotangent[:1])


def _with_counted(view: View, counted: np.ndarray, labels: np.ndarray) -> Iterator[Wrong]:
    """Other rows count, with labels that need not be classes; those that are none may be taken for the first one."""
    classes = view.logits.shape[-1]
    known = (labels >= 0) & (labels < classes)
    if classes and not known[counted].all():
        yield from _counted_as(view, counted, np.where(known, labels, 0))
    yield from _counted_as(view, counted, labels)


def _counted_as(view: View, counted: np.ndarray, labels: np.ndarray) -> Iterator[Wrong]:
    target = (labels[:, None] == np.arange(view.logits.shape[-1])) & counted[:, None]
    smoothed = (1 - view.smoothing) * target + view.smoothing / max(view.logits.shape[-1], 1)
    mass = view.weight * smoothed * counted[:, None]
    count = float((target * view.weight).sum()) if target.any() else float(counted.sum())
    normalisers = [view.normaliser]
    if view.reduction == "mean" and not view.of_items:
        normalisers = [count, float(counted.sum()), view.normaliser]
    for normaliser in dict.fromkeys(normalisers):
        yield Wrong(mass=mass, normaliser=normaliser, squared=counted)
        # A label that is no class: the sum of probabilities is there, and nothing is taken from it.
        pushed = counted[:, None] * (view.p if not view.is_log else 0.0)
        missing = counted & ~target.any(axis=-1)
        slopes = np.where(missing[:, None], pushed, view.slopes_of(view.p, mass))
        losses = np.where(missing, view.lse[:, 0], view.losses_of(view.log_p, mass))
        if missing.any():
            found = Wrong(losses=losses, slopes=slopes, normaliser=normaliser, squared=counted)
            yield found
            yield found._replace(losses=view.losses_of(view.log_p, mass))


def ignored_in_32_bits(view: View) -> Iterator[Wrong]:
    """The low half of a number that needs 64 bits."""
    ignored = view.parameters.get("ignore_index", 0)
    cut = int(np.int64(ignored).astype(np.int32))
    if view.labels is None or cut == ignored:
        return
    labels = view.labels.astype(np.int32).astype(np.int64)
    for seen in (labels, view.labels):
        yield from _with_counted(view, seen != cut, labels)


def default_ignored(view: View) -> Iterator[Wrong]:
    """−100 whatever is said."""
    given = view.parameters.get("ignore_index")
    default = 255 if "auxiliary_logits" in view.inputs or view.tensor == "" else -100
    if view.labels is not None and given is not None and (view.labels == given).any():
        for ignored in dict.fromkeys((default, -100, 255)):
            if ignored != given:
                yield from _with_counted(view, view.labels != ignored, view.labels)


def chunk_means(view: View) -> Iterator[Wrong]:
    """Rows in so many parts, or in parts of so many."""
    rows = len(view.counted)
    for count in CHUNKS:
        for ends in (np.arange(rows) * count // max(rows, 1), np.arange(rows) // count, _array_split(rows, count)):
            yield from _means_of(view, ends)


def _array_split(rows: int, count: int) -> np.ndarray:
    return np.repeat(np.arange(count), [len(part) for part in np.array_split(np.arange(rows), count)])


def sequence_means(view: View) -> Iterator[Wrong]:
    """The first axis is that of sequences, or of images."""
    if len(view.row_shape) > 1 and view.row_shape[0] > 1:
        yield from _means_of(view, np.repeat(np.arange(view.row_shape[0]), np.prod(view.row_shape[1:], dtype=int)))


def _means_of(view: View, group: np.ndarray) -> Iterator[Wrong]:
    if view.reduction != "mean" or view.of_items or not group.size or group[-1] == 0 or group[-1] == len(group) - 1:
        return
    weights = view.target @ view.weight if view.has_labels else np.ones(len(group))
    sums = np.bincount(group, weights)
    filled = int((sums > 0).sum())
    for groups in dict.fromkeys((len(sums), filled)):
        # An empty part: 0/0, or left out, or over at least one.
        normaliser = sums[group] * groups
        yield Wrong(normaliser=np.where(normaliser == 0, 1.0, normaliser))
    if filled < len(sums):
        yield Wrong(loss=np.nan, normaliser=np.where(sums[group] == 0, np.nan, sums[group] * len(sums)))


def counted_before_shift(view: View) -> Iterator[Wrong]:
    """The first token of each sequence is in the count, though nothing predicts it."""
    labels = view.inputs.get("labels")
    if view.of_items or labels is None or view.reduction != "mean" or "shift_labels" in view.inputs:
        return
    count = float(np.count_nonzero(labels != view.parameters.get("ignore_index", -100)))
    if count != view.normaliser:
        yield Wrong(normaliser=count)


def without_divisor(view: View) -> Iterator[Wrong]:
    """Smoothing of ε for each class."""
    if view.smoothing:
        for kept in ((1 - view.smoothing) * view.target, view.target):
            yield Wrong(mass=view.weight * (kept + view.smoothing) * view.counted[:, None])
        others = np.where(view.target > 0, (1 - view.smoothing) * view.target, view.smoothing)
        yield Wrong(mass=view.weight * others * view.counted[:, None])


def smoothed_ignored(view: View) -> Iterator[Wrong]:
    """The share of all classes has no mask."""
    if view.smoothing and not view.counted.all():
        classes = view.logits.shape[-1]
        smoothed = (1 - view.smoothing) * view.target + view.smoothing / classes
        yield Wrong(mass=view.weight * smoothed)


def unweighted_smoothing(view: View) -> Iterator[Wrong]:
    """w_y on the label's share, and nothing, or w_y, on the others'."""
    if view.smoothing and (view.weight != 1).any():
        classes = view.logits.shape[-1]
        kept = (1 - view.smoothing) * view.target * view.weight
        own = (view.target @ view.weight)[:, None]
        for factor in (1.0, own):
            yield Wrong(mass=(kept + view.smoothing / classes * factor) * view.counted[:, None])


def rows_for_weights(view: View) -> Iterator[Wrong]:
    """How many rows there are."""
    if "weight" in view.inputs and view.reduction == "mean" and view.has_labels:
        yield Wrong(normaliser=float(view.counted.sum()))


def nothing_is_zero(view: View) -> Iterator[Wrong]:
    """0/max(0, 1)."""
    if view.normaliser == 0 and not view.counted.any():
        yield Wrong(normaliser=1.0)


def dropped_mass(view: View) -> Iterator[Wrong]:
    """p − q."""
    if not view.has_labels:
        yield Wrong(slopes=view.p - view.mass)
        of_labels = np.where(view.mass == 0, 0.0, view.mass * view.logits).sum(axis=-1)
        yield Wrong(losses=view.lse[:, 0] - of_labels, slopes=view.p - view.mass)
        yield Wrong(slopes=view.weight * (view.p - view.mass))


def clamped_targets(view: View) -> Iterator[Wrong]:
    """max(t, ε) where t stands."""
    if not view.has_labels and (view.target < 1e-5).any():
        for tiny in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5):
            target = (1 - view.smoothing) * np.maximum(view.target, tiny) + view.smoothing / view.logits.shape[-1]
            yield Wrong(mass=view.weight * target)


def undefined_entropy(view: View) -> Iterator[Wrong]:
    """0·log 0 in what is added and taken away again."""
    if not view.has_labels and (view.target == 0).any():
        undefined = np.where((view.target == 0).any(axis=-1), np.nan, view.losses)
        yield Wrong(losses=undefined)
        yield Wrong(losses=undefined, slopes=np.where(view.target == 0, np.nan, view.slopes))


def beyond_grid(view: View) -> Iterator[Wrong]:
    """Rows that no program takes have neither a loss nor a gradient, and count or do not."""
    rows = np.arange(len(view.counted))
    for size in GRIDS:
        if len(rows) > size:
            within = rows < size
            losses, slopes = np.where(within, view.losses, 0.0), np.where(within[:, None], view.slopes, 0.0)
            yield Wrong(losses=losses, slopes=slopes)
            if view.reduction == "mean" and not view.of_items and view.has_labels:
                yield Wrong(losses=losses, slopes=slopes, normaliser=float((view.target @ view.weight)[within].sum()))


STEPS: Steps = {
    FIRST_UPSTREAM: (COMMON, first_cotangent),
    "ignore_index is cut to 32 bits": (POSSIBLE, ignored_in_32_bits),
    "ignore_index is taken to be its default": (POSSIBLE, default_ignored),
    "a mean of the means of chunks": (SELDOM, chunk_means),
    "a mean of the means of sequences": (POSSIBLE, sequence_means),
    "labels are counted before the shift": (POSSIBLE, counted_before_shift),
    "label smoothing without 1/K": (USUAL, without_divisor),
    "label smoothing reaches ignored rows": (USUAL, smoothed_ignored),
    "class weights do not weigh label smoothing": (USUAL, unweighted_smoothing),
    "a mean over rows instead of their weights": (USUAL, rows_for_weights),
    "all labels ignored gives 0 instead of NaN": (COMMON, nothing_is_zero),
    "soft targets are taken to sum to 1: Σq is dropped from the gradient": (USUAL, dropped_mass),
    "soft targets: log of max(t, ε)": (POSSIBLE, clamped_targets),
    "soft targets: t·log t is NaN where t is 0": (USUAL, undefined_entropy),
    "a mean over all rows instead of the rows that count": (USUAL, over_all_rows),
    "rows beyond a grid are left out": (USUAL, beyond_grid),
    INCLUDED: (COMMON, leaking),
    COUNTED: (COMMON, leaking_counted),
    LEAK: (COMMON, leaking_gradient),
    "label smoothing gives the other classes ε/(K − 1) instead of ε/K": (USUAL, over_others),
}
# What shows with some of their numbers alone: a case that does not show it says nothing against them.
OF_SOME_NUMBER = (chunk_means, clamped_targets, beyond_grid)
