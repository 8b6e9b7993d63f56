"""What a mistaken step changes in rows, and the tensors of a case that it makes, computed when asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.testing.mistakes.rows import View

    # How usual a mistaken step is, and what it makes of rows, in its variants; by words for it.
    Steps = dict[str, tuple[float, Callable[[View], Iterator["Wrong"]]]]


class Wrong(NamedTuple):
    """What a mistake changes in a view: logarithms and probabilities, masses, or what comes of them."""

    lse: np.ndarray | None = None  # [R, 1]
    cut: int | None = None  # classes from here on have no gradient
    cut_p: int | None = None  # or lack its first part, Q·p
    log_p: np.ndarray | None = None  # [R, C]
    p: np.ndarray | None = None  # [R, C]
    mass: np.ndarray | None = None  # [R, C]
    losses: np.ndarray | None = None  # [R]
    slopes: np.ndarray | None = None  # [R, C]
    normaliser: Any = None  # one, or [R]
    cotangent: Any = None
    kept: float | None = None  # of a soft target, beside smoothing
    squared: np.ndarray | None = None  # [R], which rows have a z-loss
    loss: Any = None  # instead of all of the above


class Tensors(Mapping[str, np.ndarray]):
    """Arrays by name, computed when asked for: most mistakes are refuted by the loss alone."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._makers = makers
        self._known: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._known:
            self._known[name] = self._makers[name]()
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def combined(every: list[View], wrong: list[Wrong]) -> Tensors:
    """The tensors of a case with a mistake in its views; losses are added."""
    pairs = list(zip(every, wrong, strict=True))
    makers: dict[str, Callable[[], np.ndarray]] = {"loss": lambda: np.asarray(sum(_loss(*pair) for pair in pairs))}
    for pair in pairs:
        makers[pair[0].tensor] = functools.partial(_gradient, *pair)
        if not pair[0].has_labels:
            makers["grad.target"] = functools.partial(_target_gradient, *pair)
        if pair[0].z_loss:
            makers["component.cross_entropy"] = functools.partial(_reduced, *pair, _likelihoods)
            makers["component.z_loss"] = functools.partial(_reduced, *pair, _squares)
    return Tensors(makers)


def _loss(view: View, wrong: Wrong) -> np.ndarray:
    if wrong.loss is not None:
        return view.share * np.asarray(wrong.loss)
    return _reduced(view, wrong, _likelihoods if not view.z_loss else _both)


def _reduced(view: View, wrong: Wrong, of_rows: Callable[[View, Wrong], np.ndarray]) -> np.ndarray:
    losses = view.share * of_rows(view, wrong) / (view.normaliser if wrong.normaliser is None else wrong.normaliser)
    return losses.reshape(view.row_shape) if view.reduction == "none" else np.asarray(losses.sum())


def _likelihoods(view: View, wrong: Wrong) -> np.ndarray:
    """Those of rows, without a z-loss."""
    if wrong.losses is not None:
        return wrong.losses
    if wrong.lse is not None:
        return np.asarray(view.losses + view.pushed * (wrong.lse - view.lse)[:, 0])
    same = wrong.log_p is None and wrong.mass is None
    return view.losses if same else view.losses_of(view.log_p if wrong.log_p is None else wrong.log_p, wrong.mass)


def _squares(view: View, wrong: Wrong) -> np.ndarray:
    """ζ·lse² of rows."""
    counted = view.counted if wrong.squared is None else wrong.squared
    return np.asarray(np.where(counted, view.z_loss * _lse(view, wrong)[:, 0] ** 2, 0.0))


def _both(view: View, wrong: Wrong) -> np.ndarray:
    return np.asarray(_likelihoods(view, wrong) + _squares(view, wrong))


def _lse(view: View, wrong: Wrong) -> np.ndarray:
    """[R, 1]; where logarithms are wrong, that of the largest logit tells."""
    if wrong.lse is not None or wrong.log_p is None or not view.logits.size:
        return view.lse if wrong.lse is None else wrong.lse
    top = view.logits.argmax(axis=-1)[:, None]
    return np.asarray(np.take_along_axis(view.logits, top, 1) - np.take_along_axis(wrong.log_p, top, 1))


def _pushed(view: View, wrong: Wrong) -> np.ndarray:
    """2ζ·lse·p, [R, C]."""
    lse = _lse(view, wrong)
    p = view.p * np.exp(view.lse - lse) if wrong.p is None and wrong.lse is not None else view.p
    counted = view.counted if wrong.squared is None else wrong.squared
    return np.asarray(np.where(counted[:, None], 2 * view.z_loss * lse * (p if wrong.p is None else wrong.p), 0.0))


def coefficient(view: View, wrong: Wrong) -> np.ndarray:
    """What the gradients of rows are multiplied by, [R, 1]."""
    if wrong.normaliser is None and wrong.cotangent is None:
        return view.coefficient
    normaliser = view.normaliser if wrong.normaliser is None else wrong.normaliser
    cotangent = view.cotangent if wrong.cotangent is None else wrong.cotangent
    return np.broadcast_to(view.share * cotangent / normaliser, view.counted.shape)[:, None]


def _gradient(view: View, wrong: Wrong) -> np.ndarray:
    slopes = wrong.slopes
    if slopes is None and wrong.lse is not None and wrong.p is None:
        slopes = view.slopes_of(view.p * np.exp(view.lse - wrong.lse), wrong.mass)
    if slopes is None:
        same = wrong.p is None and wrong.mass is None
        slopes = view.slopes if same else view.slopes_of(view.p if wrong.p is None else wrong.p, wrong.mass)
    slopes = slopes + _pushed(view, wrong) if view.z_loss else slopes
    classes = np.arange(slopes.shape[-1])
    if wrong.cut is not None:
        slopes = np.where(classes < wrong.cut, slopes, 0.0)
    if wrong.cut_p is not None:
        slopes = np.where(classes < wrong.cut_p, slopes, -(view.mass if wrong.mass is None else wrong.mass))
    return view.back(np.where(slopes == 0, 0.0, coefficient(view, wrong) * slopes)) * view.slope


def glance(every: list[View], wrong: list[Wrong], tensor: str, place: int) -> float | None:
    """One element of a gradient, without the others; None where it is made of several rows."""
    for view, other in zip(every, wrong, strict=True):
        if view.tensor == tensor and view.logits.size == view.given.size and not view.z_loss:
            # Of the axes in front of that of the classes, and of those behind it, rows are made.
            shape, behind = view.given.shape, math.prod(view.given.shape[view.axis + 1 :])
            first, last = divmod(place, behind)
            first, column = divmod(first, shape[view.axis])
            row = first * behind + last
            slope = _slope(view, other, row, column)
            of_logit = float(np.broadcast_to(view.slope, shape).flat[place] if np.ndim(view.slope) else view.slope)
            return slope and slope * float(coefficient(view, other)[row, 0]) * of_logit
    return None


def _slope(view: View, wrong: Wrong, row: int, column: int) -> float:
    kept = wrong.cut is None or column < wrong.cut
    if wrong.slopes is not None:
        return float(wrong.slopes[row, column]) if kept else 0.0
    masses = view.mass[row] if wrong.mass is None else wrong.mass[row]
    p = float((view.p if wrong.p is None else wrong.p)[row, column])
    if wrong.lse is not None and wrong.p is None:
        p *= float(np.exp(view.lse[row, 0] - wrong.lse[row, 0]))
    pushed = float(view.pushed[row] if wrong.mass is None else masses.sum())
    has_p = not view.is_log and pushed != 0 and (wrong.cut_p is None or column < wrong.cut_p)
    return (pushed * p if has_p else 0.0) - float(masses[column]) if kept else 0.0


def magnitudes(every: list[View], wrong: list[Wrong]) -> Tensors:
    """Of the gradients of logits: those of Q·p and q."""
    pairs = zip(every, wrong, strict=True)
    return Tensors({view.tensor: functools.partial(_magnitude, view, other) for view, other in pairs})


def _magnitude(view: View, wrong: Wrong) -> np.ndarray:
    mass = np.abs(view.mass if wrong.mass is None else wrong.mass)
    p = np.zeros(1) if view.is_log else view.p if wrong.p is None else wrong.p
    terms = mass.sum(axis=-1, keepdims=True) * p + mass
    terms = terms + np.abs(_pushed(view, wrong)) if view.z_loss else terms
    return np.asarray(np.abs(view.back(np.abs(coefficient(view, wrong)) * terms) * view.slope))


def _target_gradient(view: View, wrong: Wrong) -> np.ndarray:
    log_p = view.log_p if wrong.log_p is None else wrong.log_p
    log_p = view.logits - wrong.lse if wrong.lse is not None else log_p
    kept = 1 - view.smoothing if wrong.kept is None else wrong.kept
    return view.back(-coefficient(view, wrong) * kept * view.weight * log_p)
