"""What a mistake is to the judge: words, how usual it is, and the tensors that it would make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

# How usual a mistake is beside others that fit as well. What is read off a tensor alone says least.
SELDOM, POSSIBLE, USUAL, COMMON = 0.2, 0.4, 0.6, 0.8
UPSTREAM = 0.75  # ignored


class Guess(NamedTuple):
    """A mistake, tried on a case.

    tensors are what it makes of the case, float64, by the names that a candidate's have; those that it leaves as they
    are need not be among them. bounds, where a tensor has one here, is how far off an honest computation of it may be;
    limits computes them, where that is not done yet. magnitudes are those of the terms that a tensor's elements are
    made of: where they cancel, little is left of an element's digits. glance gives one element, if that is cheaper.
    """

    mistake: str
    prior: float
    tensors: Mapping[str, np.ndarray]
    bounds: Mapping[str, Any] = {}
    magnitudes: Mapping[str, np.ndarray] = {}
    glance: Callable[[str, int], float | None] | None = None
    limits: Callable[[], Mapping[str, Any]] | None = None
    detail: str = ""  # the same with the numbers of a case
    is_certain: bool = True  # whether it shows wherever it is tried, without a number that may be another
