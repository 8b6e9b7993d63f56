"""Mistaken formulas of losses of three arrays: the third is among the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes.elements import Elements, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.elements import Step, Tensors


def _third(given: Elements, name: str, slope: np.ndarray) -> Tensors:
    """The gradient for the third array."""
    return {f"grad.{name}": given.cotangent / given.divisor * slope}


def _no_slope_at_hinge(given: Elements) -> Iterator[Tensors]:
    y, distance = real(given.inputs["target"]), given.x - given.t
    hinge = given.parameters.get("margin", 0.0) - y * distance
    if (hinge == 0).any():
        above = hinge > 0
        slope = np.where(above, y, 0.0)
        yield tensors(given, None, -slope, slope) | _third(given, "target", np.where(above, -distance, 0.0))


OF_RANKS: dict[str, Step] = {"the hinge has no slope where it is 0": _no_slope_at_hinge}
