"""Losses of preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.kernels import softplus
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, stepped
from tests.gauntlet.preferences import Kto, PreferenceLoss

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from tests.gauntlet.preferences import Given

BOTH = ("preference_loss",)


def has_reference(case: Case) -> bool:
    """Whether there is one."""
    return "ref_chosen_log_probs" in case.inputs


def of_kinds(*kinds: str) -> Any:
    """Whether a case is of one of some kinds."""
    return lambda case: case.parameters.get("kind", "sigmoid") in kinds


def is_scaled(case: Case) -> bool:
    """Whether β scales a log-ratio; squares and odds are of others."""
    return case.parameters.get("kind") not in ("ipo", "sppo_hard", "orpo")


def has_weights(case: Case) -> bool:
    """Whether a weight is not 1."""
    return any(case.parameters.get(f"{name}desirable_weight", 1.0) != 1.0 for name in ("", "un"))


def plain_odds(self: Any, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    power = np.exp(p)
    return 1 - power, np.log1p(-power)


def is_sure(case: Case) -> bool:
    """Whether a log-probability is next to 0."""
    held = np.finfo(np.float64 if case.inputs["chosen_log_probs"].dtype == np.float64 else np.float32).eps
    of_odds = case.parameters.get("kind") == "orpo"
    return of_odds and any((case.inputs[name].astype(float) > -50 * held).any() for name in PreferenceLoss.names)


def exchanged(self: Any, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Any:
    names = ("ref_chosen_log_probs", "ref_rejected_log_probs")
    others = {names[0]: inputs[names[1]], names[1]: inputs[names[0]]} if names[0] in inputs else {}
    value, first, second = PreferenceLoss.element(self, t, x, parameters, inputs | others)
    return value, second, first


def averaged(self: Any, x: np.ndarray, weight: np.ndarray, parameters: dict[str, Any]) -> Any:
    return PreferenceLoss.divisor(self, x, weight, parameters) * (
        2 if parameters.get("reduction", "mean") == "mean" else 1
    )


def twice(self: Any, h: np.ndarray, given: Given) -> np.ndarray:
    return given.beta * (given.beta * h)


PREFERENCE_MISTAKES = [
    Mistake(
        "the reference is forgotten",
        TUTORIALS,
        BOTH,
        stepped(ratios=lambda self, x, t, inputs: (x, t)),
        "the reference is forgotten",
        has_reference,
        "where there is a reference",
    ),
    Mistake(
        "chosen and rejected exchanged",
        TUTORIALS,
        BOTH,
        stepped(element=exchanged),
        "chosen and rejected are exchanged",
    ),
    Mistake(
        "β in the gradient alone",
        TUTORIALS,
        BOTH,
        stepped(scaled=lambda self, h, given: h),
        "beta is applied to the gradient alone",
        is_scaled,
        "where β scales a log-ratio",
    ),
    Mistake(
        "β twice",
        TUTORIALS,
        BOTH,
        stepped(scaled=twice),
        "beta is applied twice",
        is_scaled,
        "where β scales a log-ratio",
    ),
    Mistake(
        "a mean over both halves",
        TUTORIALS,
        BOTH,
        stepped(divisor=averaged),
        "off by a constant factor of 0.5",
        lambda case: case.parameters.get("reduction", "mean") == "mean",
        "where there is a mean",
    ),
    Mistake(
        "no smoothing in the sigmoid loss",
        TUTORIALS,
        BOTH,
        stepped(smoothed=lambda self, x, given: (softplus(-x), -np.exp(-softplus(x)))),
        "label_smoothing is ignored",
        lambda case: of_kinds("sigmoid", "simpo")(case) and bool(case.parameters.get("label_smoothing")),
        "where label_smoothing is given to these kinds",
    ),
    Mistake(
        "log(1 − e^p) as it is written",
        TUTORIALS,
        BOTH,
        stepped(missing=plain_odds),
        "1 − e^p is rounded",
        is_sure,
        "where a mean log-probability is next to 0",
        dtypes=("float32", "float64"),
    ),
    Mistake(
        "KL not clamped",
        TUTORIALS,
        ("kto",),
        stepped(center=lambda self, kl: kl),
        "a negative kl is not clamped at 0",
        lambda case: case.parameters["kl"] < 0,
        "where the KL is negative",
        dtypes=("float32",),
    ),
    Mistake(
        "no weights of desirable sequences",
        TUTORIALS,
        ("kto",),
        stepped(weights=lambda self, x, desirable, parameters: np.ones_like(x)),
        "desirable_weight and undesirable_weight are ignored",
        has_weights,
        "where weights are given",
    ),
    Mistake(
        "desirable the other way round",
        TUTORIALS,
        ("kto",),
        stepped(
            element=lambda self, x, t, parameters, inputs: Kto.element(
                self, x, t, parameters, inputs | {"desirable": ~inputs["desirable"]}
            )
        ),
        "desirable is taken the other way round",
    ),
]
