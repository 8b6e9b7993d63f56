"""Mistaken formulas of transducers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.error_model.transducer import passings
from refloss.roundoff import real
from refloss.testing.mistakes.guess import USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.verdict import Question


def of_lattices(asked: Question) -> Iterator[Guess]:
    """Those of a case's function; none where it has no lattice."""
    if asked.case.function in ("rnnt", "tdt"):
        yield Guess("a node's softmax is not multiplied by its occupancy", USUAL, _without_occupancy(asked))


def _without_occupancy(asked: Question) -> dict[str, np.ndarray]:
    """p for m·p: with c a sample's cotangent, (1 − m)·c·p is too much."""
    wrong = {name: real(value).copy() for name, value in asked.expected.items() if name.startswith("grad.")}
    for place, share, cotangent, log_p in passings(asked.case):
        for name, rows in log_p.items():
            if f"grad.{name}" in wrong:
                wrong[f"grad.{name}"][place] += cotangent * (1.0 - share)[..., None] * np.exp(rows)
    return wrong
