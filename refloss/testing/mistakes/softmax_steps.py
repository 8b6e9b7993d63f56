"""Mistaken steps of a softmax: how its maximum, its sum, its logarithm and its classes are computed.

Each takes a view of rows, and gives what comes of it in its usual variants: of the gradient there is often one by the
formula p − q, and one that is derived from the mistaken loss.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.guess import POSSIBLE, USUAL
from refloss.testing.mistakes.rows import Wrong, coefficient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.testing.mistakes.rows import View

TINIEST = (2.0**-126, 2.0**-149, 1e-45, 1e-38, 1e-37, 1e-30, 1e-20, 1e-16, 1e-15, 1e-12, 1e-10, 1e-9, 1e-8, 2.0**-24)
SMALL = (2.0**-23, 1e-7, 1e-6, 1e-5, 2.0**-14, 1e-4)
LIMITS = (20.0, 30.0, 40.0, 50.0, 60.0, 64.0, 70.0, 80.0, 87.0, 88.0, 100.0, 103.0)
LARGEST, LEAST = float(np.finfo(np.float32).max), 2.0**-149


def narrow(values: np.ndarray, least: float = LEAST) -> np.ndarray:
    """What float32 makes of sizes that it cannot hold."""
    return np.where(np.abs(values) > LARGEST, np.copysign(np.inf, values), np.where(values < least, 0.0, values))


def from_shift(view: View, shift: np.ndarray) -> Iterator[Wrong]:
    """Exponentials of x minus something other than the row's maximum, in float32."""
    for least in (LEAST / 2, 2.0**-126):
        terms = narrow(np.exp(view.logits - shift), least)
        total = narrow(terms.sum(axis=-1, keepdims=True))
        if np.isfinite(total).all() and (total > 0).all() and (terms > 0).all():
            return
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
        if (view.p < tiny).any(where=view.mass != 0):
            log_p = np.log(np.maximum(view.p, tiny))
            yield Wrong(log_p=log_p, p=view.p)
            yield Wrong(log_p=log_p, slopes=_derived(view, np.where(view.p < tiny, 0.0, view.mass)))


def added_to_probability(view: View) -> Iterator[Wrong]:
    """log(p + ε)."""
    for tiny in (*TINIEST, *SMALL, 1e-3):
        if (view.p < 1e4 * tiny).any(where=view.mass != 0):
            log_p = np.log(view.p + tiny)
            yield Wrong(log_p=log_p, p=view.p)
            yield Wrong(log_p=log_p, slopes=_derived(view, view.mass * view.p / (view.p + tiny)))


def sizes(view: View, largest: int = 2**17) -> list[int]:
    """Sizes that blocks of classes may have."""
    classes = view.logits.shape[-1]
    return [2**power for power in range(18) if 2**power < min(classes, largest)]


def unscaled_blocks(view: View) -> Iterator[Wrong]:
    """Each block's exponentials are of its distance from the maximum so far, and stay so."""
    running = np.maximum.accumulate(view.logits, axis=-1)
    classes = view.logits.shape[-1]
    for size in sizes(view):
        ends = np.minimum(np.arange(size - 1, classes + size - 1, size), classes - 1)
        so_far = np.repeat(running[:, ends], size, axis=-1)[:, :classes]
        total = np.exp(view.logits - so_far).sum(axis=-1, keepdims=True)
        yield from _with_total(view, total, view.maximum)


def _with_total(view: View, total: np.ndarray, maximum: np.ndarray) -> Iterator[Wrong]:
    """Another sum of exponentials, in the loss and in the gradient, or in the loss alone."""
    log_p = view.logits - maximum - np.log(total)
    yield Wrong(log_p=log_p, p=np.exp(log_p))
    yield Wrong(log_p=log_p, p=view.p)


def lost_tail(view: View) -> Iterator[Wrong]:
    """Classes beyond the last whole block are not looked at."""
    classes = view.logits.shape[-1]
    for size in sizes(view):
        whole = classes - classes % size
        if whole == classes:
            continue
        head = view.logits[:, :whole]
        maximum = head.max(axis=-1, keepdims=True)
        total = np.exp(head - maximum).sum(axis=-1, keepdims=True)
        log_p = view.logits - maximum - np.log(total)
        p = np.exp(log_p)
        yield from _without(view, log_p, p, whole)
        # The labels that it holds are not met either.
        unmet = view.labels is not None and (view.labels >= whole).any()
        if unmet:
            mass = np.where(np.arange(classes) < whole, view.mass, 0.0)
            slopes = np.where(np.arange(classes) < whole, view.mass.sum(axis=-1, keepdims=True) * p - mass, 0.0)
            losses = np.where(
                view.labels < whole, view.losses_of(log_p), -view.mass.sum(axis=-1) * log_p_of_zero(log_p, view)
            )
            yield Wrong(losses=losses, slopes=slopes)


def log_p_of_zero(log_p: np.ndarray, view: View) -> np.ndarray:
    """Of a label whose logit was never read, and stays 0."""
    return np.asarray(log_p - view.logits)[:, 0]


def _without(view: View, log_p: np.ndarray, p: np.ndarray, whole: int) -> Iterator[Wrong]:
    yield Wrong(log_p=log_p, p=p)
    beyond = np.arange(view.logits.shape[-1]) >= whole
    yield Wrong(log_p=log_p, slopes=np.where(beyond, 0.0, view.slopes_of(p)))
    yield Wrong(log_p=log_p, p=np.where(beyond, 0.0, p))
    yield Wrong(log_p=log_p, p=view.p)
    yield Wrong(slopes=np.where(beyond, 0.0, view.slopes))


def first_block_only(view: View) -> Iterator[Wrong]:
    """Beyond the first block of classes the gradient is 0, or lacks p."""
    classes = view.logits.shape[-1]
    for size in sizes(view):
        first = np.arange(classes) < size
        yield Wrong(slopes=np.where(first, view.slopes, 0.0))
        yield Wrong(p=np.where(first, view.p, 0.0))


def tail_of_next_row(view: View) -> Iterator[Wrong]:
    """The last block is read to its end, which is the start of the next row."""
    rows, classes = view.logits.shape
    flat = np.concatenate([view.logits.reshape(-1), np.full(classes, -np.inf)])
    around = np.concatenate([view.logits, np.roll(view.logits, -1, axis=0)], axis=-1)
    for size in sizes(view, 2**12):
        beyond = -classes % size
        if not beyond or beyond > classes or rows < 2:
            continue
        straight = np.concatenate([view.logits, flat[classes:].reshape(rows, classes)[:, :beyond]], axis=-1)
        for read in (straight, around[:, : classes + beyond]):
            maximum = read.max(axis=-1, keepdims=True)
            yield from _with_total(view, np.exp(read - maximum).sum(axis=-1, keepdims=True), maximum)


def padded_classes(view: View) -> Iterator[Wrong]:
    """Classes that are only there to fill a block, with logits of 0."""
    classes = view.logits.shape[-1]
    seen = set()
    for power in range(1, 13):
        beyond = -classes % 2**power
        if beyond and beyond not in seen and beyond < 64 * classes:
            seen.add(beyond)
            maximum = np.maximum(view.maximum, 0.0)
            total = view.terms.sum(axis=-1, keepdims=True) * np.exp(view.maximum - maximum)
            yield from _with_total(view, total + beyond * np.exp(-maximum), maximum)


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


def foreign_shards(view: View) -> Iterator[Wrong]:
    """Shards of the vocabulary add up what they find at the label; those without it find their first class."""
    if view.labels is None:
        return
    classes = view.logits.shape[-1]
    for count in (2, 3, 4, 8):
        firsts = np.array([part[0] for part in np.array_split(np.arange(classes), count) if part.size])
        own = np.searchsorted(firsts, view.labels, side="right") - 1
        others = (np.arange(len(firsts)) != own[:, None]) & view.counted[:, None]
        mass = view.mass.copy()
        if classes < count or not others.any():
            continue
        factor = view.mass.sum(axis=-1, keepdims=True)
        losses = view.losses - factor[:, 0] * np.where(others, view.logits[:, firsts], 0.0).sum(axis=-1)
        mass[:, firsts] += factor * others
        yield Wrong(losses=losses, slopes=factor * view.p - mass)
        yield Wrong(losses=losses)
        yield Wrong(slopes=factor * view.p - mass)


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    """In float64; where a maximum is not finite, NaN."""
    terms = np.exp(values - values.max(axis=axis, keepdims=True, initial=-np.inf))
    return np.asarray(terms / terms.sum(axis=axis, keepdims=True))


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


STEPS: dict[str, tuple[float, Callable[[View], Iterator[Wrong]]]] = {
    "no maximum is subtracted before the exponential": (USUAL, no_maximum),
    "the maximum of the whole batch is subtracted instead of the row's": (USUAL, batch_maximum),
    "the row's maximum is not taken below a limit": (POSSIBLE, limited_maximum),
    "distances to the maximum are clamped": (POSSIBLE, clamped_distances),
    "the logarithm is of max(p, tiny): improbable targets are clamped": (USUAL, clamped_logarithm),
    "the logarithm is of p + ε": (USUAL, added_to_probability),
    "blocks of classes: the running sum is not rescaled when the maximum grows": (USUAL, unscaled_blocks),
    "blocks of classes: the tail is left out": (USUAL, lost_tail),
    "blocks of classes: only the first block has a gradient": (USUAL, first_block_only),
    "blocks of classes: the tail reads the next row": (USUAL, tail_of_next_row),
    "padded classes are counted": (POSSIBLE, padded_classes),
    "an index of 16 bits wraps": (USUAL, wrapped_index),
    "−inf logits (masked classes) give NaN": (USUAL, masked_undefined),
    "a vocabulary shard without the label answers with its own first class": (POSSIBLE, foreign_shards),
    "double softmax, or sigmoid: probabilities are taken as logits": (USUAL, twice),
    "double softmax: the derivative of the loss of probabilities": (USUAL, derived_twice),
}
