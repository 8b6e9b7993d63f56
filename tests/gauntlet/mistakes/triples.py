"""Losses of three arrays of corresponding elements, and of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.roundoff import real
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, ignored, stepped
from tests.gauntlet.triples import GaussianNll, PoissonNll

if TYPE_CHECKING:
    from refloss.cases.source import Case


def at_hinge(case: Case) -> bool:
    """Whether some pair is a margin apart, and has a cotangent and a target that are not 0."""
    x, z, y = (real(case.inputs[name]) for name in ("input1", "input2", "target"))
    hinge = case.parameters.get("margin", 0.0) - y * (x - z)
    return bool(((hinge == 0) & (real(case.grad_output) * y != 0)).any())


def is_clamped(case: Case) -> bool:
    """Whether a variance is below the least one."""
    return bool((real(case.inputs["var"]) < case.parameters.get("eps", 1e-6)).any())


def is_shared(case: Case) -> bool:
    """Whether elements share the numbers of an array."""
    sizes = {case.inputs[name].size for name in ("input", "target", "var")}
    return len(sizes) > 1


def is_small(case: Case) -> bool:
    """Whether a count that has no term is among others that have one."""
    return bool(case.parameters.get("full") and (real(case.inputs["target"]) <= 1).any())


def of_deviation(self: Any, d: np.ndarray, v: np.ndarray) -> Any:
    square = d * d / (v * v)
    return np.log(v) + square / 2, d / (v * v), (1 - square) / v


def of_log_variance(self: Any, d: np.ndarray, v: np.ndarray) -> Any:
    inverse = np.exp(-v)
    return (v + d * d * inverse) / 2, d * inverse, (1 - d * d * inverse) / 2


def averaged(self: Any, gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    gathered = GaussianNll.gathered(self, gradient, shape)
    return gathered / gathered.dtype.type(gradient.size / max(gathered.size, 1))


TRIPLE_MISTAKES = [
    Mistake(
        "no slope at the hinge",
        TUTORIALS,
        ("margin_ranking",),
        stepped(counts=lambda self, hinge: np.asarray(hinge > 0)),
        "the hinge has no slope where it is 0",
        at_hinge,
        "where a pair is a margin apart",
    ),
    ignored("full", TUTORIALS, ("gaussian_nll", "poisson_nll")),
    ignored("eps", TUTORIALS, ("gaussian_nll", "poisson_nll")),
    ignored("log_input", TUTORIALS, ("poisson_nll",)),
    Mistake(
        "Stirling's term always",
        TUTORIALS,
        ("poisson_nll",),
        stepped(some=lambda self, t: np.ones(t.shape, bool)),
        "Stirling's term is there where t ≤ 1",
        is_small,
        "where a count is at most 1, and full",
    ),
    Mistake(
        "Stirling's term held constant",
        TUTORIALS,
        ("poisson_nll",),
        stepped(stirling=lambda self, t: (PoissonNll.stirling(self, t)[0], np.zeros_like(t))),
        "Stirling's term has no derivative",
        lambda case: bool(case.parameters.get("full")),
        "where full is given",
    ),
    Mistake(
        "a standard deviation",
        TUTORIALS,
        ("gaussian_nll",),
        stepped(of_distance=of_deviation),
        "var is taken to be a standard deviation",
    ),
    Mistake(
        "a log variance",
        TUTORIALS,
        ("gaussian_nll",),
        stepped(of_distance=of_log_variance),
        "var is taken to be a logarithm",
    ),
    Mistake(
        "no gradient below eps",
        TUTORIALS,
        ("gaussian_nll",),
        stepped(slope=lambda self, slope, var, eps: np.where(var < eps, 0, slope)),
        "var has no gradient below eps",
        is_clamped,
        "where a variance is below eps",
    ),
    Mistake(
        "a shared gradient averaged",
        TUTORIALS,
        ("gaussian_nll",),
        stepped(gathered=averaged),
        "the gradient of a shared number is a mean",
        is_shared,
        "where elements share a number",
    ),
]
