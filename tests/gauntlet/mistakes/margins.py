"""Losses of an input and a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, ignored, stepped

if TYPE_CHECKING:
    from refloss.cases.source import Case


def overflowing(x: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    power = np.exp(-t * x)
    return np.log1p(power), -t * power / (1 + power)


def overflows(case: Case) -> bool:
    x, t = (case.inputs[name].astype(float) for name in ("input", "target"))
    return bool((-x * t).max(initial=0.0) > (720 if case.inputs["input"].dtype == np.float64 else 90))


def has_no_sign(case: Case) -> bool:
    return bool((np.abs(case.inputs["target"].astype(float)) != 1).any())


MARGIN_MISTAKES = [
    Mistake(
        "target's sign flipped",
        TUTORIALS,
        ("soft_margin", "hinge_embedding"),
        stepped(sign=lambda self, t: -t),
        "the sign of the target is flipped",
    ),
    Mistake(
        "e^−yx overflows",
        TUTORIALS,
        ("soft_margin",),
        stepped(of_sign=lambda self, x, t, parameters: overflowing(x, t)),
        "softplus overflows: log(1 + e^x) without |x|",
        overflows,
        "where e^−yx is infinite",
    ),
    Mistake(
        "one term of what is no sign",
        TUTORIALS,
        ("hinge_embedding",),
        stepped(sign=lambda self, t: np.where(t == 1, t, -1)),
        "a target that is no sign has one term alone",
        has_no_sign,
        "where a target is neither 1 nor −1",
    ),
    Mistake(
        "hinge not cut off",
        TUTORIALS,
        ("hinge_embedding",),
        stepped(cut=lambda self, hinge: (hinge, np.ones_like(hinge, bool))),
        "the hinge is not cut off at 0",
    ),
    ignored("margin", TUTORIALS, ("hinge_embedding", "margin_ranking")),
    Mistake(
        "divided by the classes twice",
        TUTORIALS,
        ("multilabel_soft_margin",),
        stepped(width=lambda self, x: x.shape[-1] ** 2),
        "divided by the length of axis 1",
        lambda case: case.inputs["input"].shape[-1] > 1,
        "where there are several classes",
    ),
]
