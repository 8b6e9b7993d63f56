"""A sum over a batch of which a call has a part: what divides the whole, and what the part adds to it.

With S_k the sum of the losses of part k, and n_k what it adds to the divisor (rows that count, weights),

    L = Σ_k S_k / Σ_k n_k

Both sums are exact, so the parts give the bits of the whole, whichever they are. Three calls of a loss make one of a
batch in parts: one that stops where n_k is known, one that divides by Σ n_k and keeps S_k, and, for gradients that
depend on L, one that is given L.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.numerics.exact import Exact, exact_sum, quotient, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Sum(NamedTuple):
    """What is divided by what, both over one power of two that is the same for all parts."""

    total: Exact
    divisor: Exact


@dataclass
class Share:
    """What a call is a part of.

    Attributes:
        divisor: what divides the sums of all parts where "mean" does; None where nothing is a mean.
        mean: the loss of all parts, where gradients depend on it.
        sums: what this part has come to, by the component's name.
    """

    divisor: Exact | None
    mean: Exact | None = None
    sums: dict[str, Sum] = field(default_factory=dict)


class NoPartsError(TypeError):
    """A loss has been computed without asking what divides it."""


class _Stopped(Exception):  # noqa: N818 - not an error
    """How far a call that computes nothing comes."""

    def __init__(self, own: Exact | None) -> None:
        super().__init__()
        self.own = own


class _Counting(NamedTuple):
    is_counted: bool  # or only checked


_current: ContextVar[Share | _Counting | None] = ContextVar("share", default=None)


@contextlib.contextmanager
def part_of(share: Share) -> Iterator[None]:
    """A call in here is of a part."""
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def counted(call: Callable[[], object], *, checked_only: bool = False) -> Exact | None:
    """What a part adds to the divisor, None where nothing is a mean: a call checks its arguments and computes nothing.

    Raises:
        Whatever the call says of its arguments. NoPartsError: it was computed.
    """
    token = _current.set(_Counting(not checked_only))
    try:
        call()
    except _Stopped as stopped:
        return stopped.own
    finally:
        _current.reset(token)
    raise NoPartsError


def divisor(own: Callable[[], Exact], *, is_mean: bool) -> Exact:
    """What divides a loss: what its own arguments say, or those of all parts. Every loss asks before it computes."""
    current = _current.get()
    if isinstance(current, _Counting):
        raise _Stopped(own() if is_mean and current.is_counted else None)
    whole = None if current is None or not is_mean else current.divisor
    return own() if whole is None else whole


def mean_of_all(total: Exact, by: Exact) -> Exact:
    """The mean that a gradient is relative to."""
    current = _current.get()
    known = current.mean if isinstance(current, Share) else None
    return ratio(total, by) if known is None else known


def divided(total: Exact, by: Exact, component: str = "loss") -> np.float64:
    """A quotient, rounded once; of a part its sum is kept as well."""
    current = _current.get()
    if isinstance(current, Share):
        current.sums[component] = Sum(total, by)
    return quotient(total, by)


def added(first: Exact, second: Exact) -> Exact:
    """A sum of exact numbers, or of those that are not finite: beside them a fraction is nothing, however large."""
    if isinstance(first, Fraction) == isinstance(second, Fraction):
        return first + second
    return second if isinstance(first, Fraction) else first


def joined(first: Sum, second: Sum) -> Sum:
    """That of two parts, which have one divisor."""
    return Sum(added(first.total, second.total), first.divisor)


def labels_counted(labels: np.ndarray, weight: np.ndarray | None, ignore_index: int) -> Exact:
    """The number of labels that count, or the sum of their weights."""
    counts = labels != ignore_index
    return Fraction(int(np.count_nonzero(counts))) if weight is None else exact_sum(weight[labels[counts]])


def label_divisor(labels: np.ndarray, weight: np.ndarray | None, ignore_index: int) -> Exact:
    """The same of all parts: what divides the sum of losses of labels."""
    return divisor(lambda: labels_counted(labels, weight, ignore_index), is_mean=True)


def label_normaliser(labels: np.ndarray, weight: np.ndarray | None, ignore_index: int) -> Exact:
    """The same; NaN for 0, so that no gradient passes for right."""
    return label_divisor(labels, weight, ignore_index) or float("nan")
