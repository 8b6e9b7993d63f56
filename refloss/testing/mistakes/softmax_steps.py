"""Mistaken steps of a softmax: how its maximum, its sum, its logarithm and its classes are computed.

Each takes a view of rows, and gives what comes of it in its usual variants: of the gradient there is often one by the
formula p − q, and one that is derived from the mistaken loss.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.alterations import softmax
from refloss.testing.mistakes.guess import POSSIBLE, USUAL
from refloss.testing.mistakes.outcome import Wrong, coefficient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.testing.mistakes.outcome import Steps
    from refloss.testing.mistakes.rows import View

MASKED = "−inf logits (masked classes) give NaN"
TINIEST = (2.0**-126, 2.0**-149, 1e-45, 1e-38, 1e-37, 1e-30, 1e-20, 1e-16, 1e-15, 1e-12, 1e-10, 1e-9, 1e-8, 2.0**-24)
SMALL = (2.0**-23, 1e-7, 1e-6, 1e-5, 2.0**-14, 1e-4)
LIMITS = (20.0, 30.0, 40.0, 50.0, 60.0, 64.0, 70.0, 80.0, 87.0, 88.0, 100.0, 103.0)
FARTHEST = {np.float32: 87.0, np.float64: 708.0}  # distances whose exponentials a type holds


def from_shift(view: View, shift: np.ndarray) -> Iterator[Wrong]:
    """Exponentials of x minus something other than the row's maximum."""
    highest = (view.maximum - shift)[np.isfinite(view.maximum - shift)]
    farthest, held = FARTHEST[view.kind], np.finfo(view.kind)
    if highest.max(initial=0.0) < farthest - np.log(view.logits.shape[-1]) and highest.min(initial=0.0) > -farthest:
        return
    distances = view.logits - shift
    exponentials = np.exp(distances.astype(view.kind)).astype(np.float64)
    # As it is, with small numbers flushed to 0, and in float64.
    for terms in (exponentials, np.where(exponentials < held.tiny, 0.0, exponentials), np.exp(distances)):
        total = terms.sum(axis=-1, keepdims=True)
        total = np.where(total > held.max, np.inf, total)
        lse = shift + np.log(total)
        log_p = view.logits - lse
        yield Wrong(log_p=log_p, p=terms / total)
        yield Wrong(log_p=log_p, p=np.exp(log_p))
        yield Wrong(log_p=np.log(terms / total), p=terms / total)


def no_maximum(view: View) -> Iterator[Wrong]:
    """e^x as it is."""
    yield from from_shift(view, np.zeros((1, 1)))


def batch_maximum(view: View) -> Iterator[Wrong]:
    """The largest logit of all rows."""
    finite = np.where(np.isfinite(view.logits), view.logits, -np.inf)
    if len(view.maximum) > 1:
        yield from from_shift(view, np.full((1, 1), finite.max(initial=-np.inf)))


def limited_maximum(view: View) -> Iterator[Wrong]:
    """A maximum that starts somewhere else than at −inf."""
    for limit in (-64.0, 0.0, -1.0, -10.0, -32.0, -50.0, -80.0, -100.0, -128.0, -1000.0, -1e4):
        if (view.maximum < limit).any():
            yield from from_shift(view, np.maximum(view.maximum, limit))


def clamped_distances(view: View) -> Iterator[Wrong]:
    """x − max, but not below a limit."""
    below = view.logits - view.maximum
    for limit in LIMITS:
        if not (below < -limit).any():
            break
        clamped = np.maximum(below, -limit)
        # A masked class may be left out before.
        for distances in (clamped, np.where(np.isneginf(below), below, clamped)):
            terms = np.exp(distances)
            total = terms.sum(axis=-1, keepdims=True)
            log_p = distances - np.log(total)
            yield Wrong(log_p=log_p, p=terms / total)
            slopes = np.where(below < -limit, 0.0, view.slopes_of(terms / total))
            yield Wrong(log_p=log_p, slopes=slopes)
            if np.isfinite(below).all():
                break


def _derived(view: View, of_p: np.ndarray) -> np.ndarray:
    """The gradient of a loss whose derivative for log p is −of_p."""
    return np.asarray(view.p * of_p.sum(axis=-1, keepdims=True) - of_p)


def clamped_logarithm(view: View) -> Iterator[Wrong]:
    """log max(p, tiny)."""
    for tiny in (*TINIEST, *SMALL):
        if view.least < tiny:
            log_p = np.log(np.maximum(view.p, tiny))
            yield Wrong(log_p=log_p, p=view.p)
            yield Wrong(log_p=log_p, slopes=_derived(view, np.where(view.p < tiny, 0.0, view.mass)))


def added_to_probability(view: View) -> Iterator[Wrong]:
    """log(p + ε)."""
    for tiny in (*TINIEST, *SMALL, 1e-3):
        if view.least < 1e4 * tiny:
            log_p = np.log(view.p + tiny)
            yield Wrong(log_p=log_p, p=view.p)
            yield Wrong(log_p=log_p, slopes=_derived(view, view.mass * view.p / (view.p + tiny)))


def rounded_probability(view: View) -> Iterator[Wrong]:
    """log p, where p has become 0."""
    held = np.finfo(view.kind)
    if view.least > held.tiny:
        return
    p = (view.terms.astype(view.kind) / view.terms.sum(axis=-1, keepdims=True).astype(view.kind)).astype(np.float64)
    for rounded in (p, np.where(p < held.tiny, 0.0, p)):
        yield Wrong(log_p=np.log(rounded), p=view.p)


def sizes(view: View, largest: int = 2**17) -> list[int]:
    """Sizes that blocks of classes may have."""
    classes = view.logits.shape[-1]
    return [2**power for power in range(18) if 2**power < min(classes, largest)]


def unscaled_blocks(view: View) -> Iterator[Wrong]:
    """Each block's exponentials are of its distance from the maximum so far, and stay so."""
    running = np.maximum.accumulate(view.logits, axis=-1)
    classes = view.logits.shape[-1]
    for size in sizes(view):
        starts = np.arange(0, classes, size)
        so_far = running[:, np.minimum(starts + size, classes) - 1]
        sums = np.add.reduceat(view.terms, starts, axis=-1) * np.exp(view.maximum - so_far)
        yield from _with_lse(view.maximum + np.log(sums.sum(axis=-1, keepdims=True)), view)


def _with_lse(lse: np.ndarray, view: View) -> Iterator[Wrong]:
    """Another sum of exponentials, in the loss and in the gradient, or in the loss alone."""
    yield Wrong(lse=lse)
    yield Wrong(lse=lse, p=view.p)


def lost_tail(view: View) -> Iterator[Wrong]:
    """Classes beyond the last whole block are not looked at."""
    classes = view.logits.shape[-1]
    sums = np.cumsum(view.terms, axis=-1)
    for size in sizes(view):
        whole = classes - classes % size
        if whole == classes:
            continue
        lse = view.maximum + np.log(sums[:, whole - 1 : whole])
        yield Wrong(lse=lse)
        yield Wrong(lse=lse, cut=whole)
        yield Wrong(lse=lse, cut_p=whole)
        yield Wrong(lse=lse, p=view.p)
        if whole & (whole - 1):  # or else it is the first block
            yield Wrong(cut=whole)
        # The labels that it holds are not met either: their logits stay 0.
        if view.labels is not None and (view.labels >= whole).any():
            pushed = view.pushed
            losses = np.where(view.labels < whole, view.losses + pushed * (lse - view.lse)[:, 0], pushed * lse[:, 0])
            yield Wrong(lse=lse, losses=losses, cut=whole)


def first_block_only(view: View) -> Iterator[Wrong]:
    """Beyond the first block of classes the gradient is 0, or lacks p."""
    for size in sizes(view):
        yield Wrong(cut=size)
        yield Wrong(cut_p=size)


def tail_of_next_row(view: View) -> Iterator[Wrong]:
    """The last block is read to its end, which is the start of the next row."""
    rows, classes = view.logits.shape
    for size in sizes(view, 2**12):
        beyond = -classes % size
        if beyond and beyond <= classes and rows > 1:
            starts = view.logits[:, :beyond]
            read = np.logaddexp.reduce(starts, axis=-1, keepdims=True)
            for following in (np.append(read[1:], [[-np.inf]], axis=0), np.roll(read, -1, axis=0)):
                infinite = following - view.maximum > FARTHEST[view.kind] + 1
                if infinite.any():
                    yield Wrong(lse=np.where(infinite, np.inf, np.logaddexp(view.lse, following)))
                else:
                    yield from _with_lse(np.logaddexp(view.lse, following), view)


def padded_classes(view: View) -> Iterator[Wrong]:
    """Classes that are only there to fill a block, with logits of 0."""
    classes = view.logits.shape[-1]
    for beyond in sorted({-classes % 2**power for power in range(1, 13)} - {0}):
        if beyond < 64 * classes:
            yield from _with_lse(np.logaddexp(view.lse, np.log(beyond)), view)


def wrapped_index(view: View) -> Iterator[Wrong]:
    """A class in 16 bits, or its place."""
    if view.labels is None or not (view.labels > 2**15 - 1).any():
        return
    classes = view.logits.shape[-1]
    for kind in (np.int16, np.uint16):
        wrapped = view.labels.astype(kind).astype(np.int64)
        for place in (wrapped, np.where(wrapped < 0, wrapped + classes, wrapped), np.maximum(wrapped, 0)):
            mass = view.mass.sum(axis=-1, keepdims=True) * (place[:, None] == np.arange(classes))
            yield Wrong(mass=mass)
            yield Wrong(mass=mass, losses=view.losses)
            pushed = view.mass.sum(axis=-1, keepdims=True) * view.p
            yield Wrong(losses=view.losses_of(view.log_p, mass), slopes=pushed - mass)


def masked_undefined(view: View) -> Iterator[Wrong]:
    """0·inf, or inf − inf."""
    masked = np.isneginf(view.logits)
    if not masked.any():
        return
    touched = np.asarray(masked.any(axis=-1, keepdims=True))
    for rows in (touched & view.counted[:, None], touched):
        undefined = np.where(rows[:, 0], np.nan, view.losses)
        yield Wrong(losses=undefined, slopes=np.where(rows, np.nan, view.slopes))
        yield Wrong(losses=undefined)
        yield Wrong(slopes=np.where(rows, np.nan, view.slopes))
        yield Wrong(losses=undefined, slopes=np.where(masked & rows, np.nan, view.slopes))
        yield Wrong(slopes=np.where(masked & rows, np.nan, view.slopes))


def _cuts(view: View) -> Iterator[np.ndarray]:
    """Where the classes of shards may begin: as they are said to, or where they are alike."""
    if "widths" in view.inputs:
        widths = view.inputs["widths"].astype(np.int64)
        yield (np.cumsum(widths) - widths)[widths > 0]
        return
    classes = view.logits.shape[-1]
    for count, length in ((n, size) for n in (2, 3, 4, 8) for size in {classes // n, -(-classes // n)}):
        if length and (count - 1) * length < classes:
            yield np.arange(count) * length


def foreign_shards(view: View) -> Iterator[Wrong]:
    """Shards of the vocabulary add up what they find at the label; those without it find their first class."""
    if view.labels is None:
        return
    for firsts in _cuts(view):
        own = np.searchsorted(firsts, view.labels, side="right") - 1
        others = (np.arange(len(firsts)) != own[:, None]) & view.counted[:, None]
        mass = view.mass.copy()
        factor = view.mass.sum(axis=-1, keepdims=True)
        losses = view.losses - factor[:, 0] * np.where(others, view.logits[:, firsts], 0.0).sum(axis=-1)
        mass[:, firsts] += factor * others
        yield Wrong(losses=losses, slopes=factor * view.p - mass)
        yield Wrong(losses=losses)
        yield Wrong(slopes=factor * view.p - mass)


def twice(view: View) -> Iterator[Wrong]:
    """Probabilities as logits."""
    p = softmax(view.p, -1)
    yield Wrong(log_p=np.log(p), p=p)


def derived_twice(view: View) -> Iterator[Wrong]:
    """The same by the chain rule."""
    p = softmax(view.p, -1)
    outer = view.slopes_of(p)
    inner = np.where(outer == 0, 0.0, view.p)
    yield Wrong(log_p=np.log(p), slopes=inner * (outer - (inner * outer).sum(axis=-1, keepdims=True)))


def along(view: View, other: int) -> Iterator[Wrong]:
    """Probabilities along another axis; by hand with the formula for the gradient, or derived."""
    p = softmax(view.given, other)
    rows = view.there(p)
    of_row = coefficient(view, Wrong())
    pulled = view.back(of_row * view.mass)
    pushed = pulled.sum(axis=other, keepdims=True)
    derived = view.there(np.where(pushed == 0, 0.0, pushed * p) - pulled)
    yield Wrong(log_p=np.log(rows), p=rows)
    yield Wrong(log_p=np.log(rows), slopes=np.where(of_row == 0, 0.0, derived / of_row))


def along_other_axes(view: View) -> dict[str, Callable[[View], Iterator[Wrong]]]:
    """One step for each axis that is not that of the classes."""
    shape = view.given.shape
    if view.logits.size != view.given.size or view.logits.shape[-1] != shape[view.axis]:
        return {}
    return {
        f"wrong axis: softmax along axis {other} instead of {view.axis}": functools.partial(along, other=other)
        for other, length in enumerate(shape)
        if other != view.axis and min(length, shape[view.axis]) > 1
    }


STEPS: Steps = {
    "no maximum is subtracted before the exponential": (USUAL, no_maximum),
    "the maximum of the whole batch is subtracted instead of the row's": (USUAL, batch_maximum),
    "the row's maximum is not taken below a limit": (POSSIBLE, limited_maximum),
    "distances to the maximum are clamped": (POSSIBLE, clamped_distances),
    "the logarithm is of max(p, tiny): improbable targets are clamped": (USUAL, clamped_logarithm),
    "the logarithm is of p + ε": (USUAL, added_to_probability),
    "the logarithm is of a rounded probability": (USUAL, rounded_probability),
    "blocks of classes: the running sum is not rescaled when the maximum grows": (USUAL, unscaled_blocks),
    "blocks of classes: the tail is left out": (USUAL, lost_tail),
    "blocks of classes: only the first block has a gradient": (USUAL, first_block_only),
    "blocks of classes: the tail reads the next row": (USUAL, tail_of_next_row),
    "padded classes are counted": (POSSIBLE, padded_classes),
    "an index of 16 bits wraps": (USUAL, wrapped_index),
    MASKED: (USUAL, masked_undefined),
    "a vocabulary shard without the label answers with its own first class": (POSSIBLE, foreign_shards),
    "double softmax, or sigmoid: probabilities are taken as logits": (USUAL, twice),
    "double softmax: the derivative of the loss of probabilities": (USUAL, derived_twice),
}
# What shows with some of their numbers alone: a case that does not show it says nothing against them.
OF_SOME_NUMBER = (
    limited_maximum,
    clamped_distances,
    clamped_logarithm,
    added_to_probability,
    unscaled_blocks,
    lost_tail,
    first_block_only,
    tail_of_next_row,
    padded_classes,
    foreign_shards,
)
