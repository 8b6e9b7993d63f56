"""Mistaken formulas of distances: squares, Huber and smooth L1."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.elements import Elements, of_formula, size, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.testing.mistakes.elements import Formula, Step, Tensors

    Piece = Callable[[np.ndarray], np.ndarray]


def _huber_for_smooth(given: Elements) -> Iterator[Tensors]:
    beta = float(given.parameters.get("beta", 1.0))
    if beta not in (0.0, 1.0):
        yield of_formula(given, lambda x, t: _huber(x - t, beta))


def _smooth_for_huber(given: Elements) -> Iterator[Tensors]:
    delta = float(given.parameters.get("delta", 1.0))
    if delta != 1.0:
        yield of_formula(given, lambda x, t: _huber(x - t, delta) / delta)


def _huber(d: np.ndarray, delta: float) -> np.ndarray:
    return np.where(np.abs(d.real) <= delta, d * d / 2, delta * (size(d) - delta / 2))


def beta_misplaced(given: Elements) -> Iterator[Tensors]:
    """Pieces with the parameter left out, or in another place."""
    name = "beta" if given.kind == "smooth_l1" else "delta"
    b = float(given.parameters.get(name, 1.0))
    if b in (0.0, 1.0):
        return
    squares: list[Piece] = [
        lambda d: d * d / (2 * b),
        lambda d: d * d / 2,
        lambda d: b * d * d / 2,
        lambda d: d * d / b,
        lambda d: d * d,
    ]
    lines: list[Piece] = [
        lambda d: size(d) - b / 2,
        lambda d: size(d) - 0.5,
        lambda d: b * (size(d) - b / 2),
        lambda d: b * (size(d) - 0.5),
        lambda d: b * size(d) - 0.5,
        lambda d: size(d) - 1 / (2 * b),
        lambda d: size(d) / b - b / 2,
        lambda d: b * size(d) - b / 2,
        lambda d: size(d) - b,
    ]
    for at, i, j in itertools.product((b, 1.0, 1 / b), range(len(squares)), range(len(lines))):
        # As it should be; as if the parameter were 1, which is another mistake.
        plain = (at == b and (i, j) in {(0, 0), (1, 2)}) or (at == 1.0 and (i, j) == (1, 1))
        if not plain:
            yield of_formula(given, _of_pieces(at, squares[i], lines[j]))


def _of_pieces(at: float, square: Piece, line: Piece) -> Formula:
    return lambda x, t: np.where(np.abs((x - t).real) < at, square(x - t), line(x - t))


def _half_derivative(given: Elements) -> Iterator[Tensors]:
    d = given.x - given.t
    yield tensors(given, None, d, -d)
    yield tensors(given, None, d)


_OF_BOTH: dict[str, Step] = {"β is in the wrong place": beta_misplaced}
OF_SMOOTH_L1: dict[str, Step] = {"Huber for smooth L1 (a factor of β)": _huber_for_smooth} | _OF_BOTH
OF_HUBER: dict[str, Step] = {"smooth L1 for Huber (a factor of β)": _smooth_for_huber} | _OF_BOTH
OF_SQUARES: dict[str, Step] = {"the derivative lacks its factor 2": _half_derivative}
