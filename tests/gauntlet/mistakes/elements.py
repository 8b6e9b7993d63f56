"""Losses of corresponding elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.elements import BceWithLogits, Focal
from tests.gauntlet.honest import HONEST, SIGMOIDS
from tests.gauntlet.kernels import Kernel, sigmoid, with_steps
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, has, ignored, stepped

if TYPE_CHECKING:
    from collections.abc import Callable


def overflowing(x: np.ndarray) -> np.ndarray:
    return np.log(1 + np.exp(x))


def overflowing_focal(self: Focal, x: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    t = np.where(x > 0, 1 - opposite, opposite)
    return t * overflowing(-x) + (1 - t) * overflowing(x)


def naive_softplus(function: str) -> Kernel:
    """log(1 + e^x) as it is written."""
    if function == "bce_with_logits":
        return with_steps(BceWithLogits, sides=lambda self, x: (overflowing(-x), overflowing(x)))(function)
    return with_steps(HONEST[function], cross_entropy=overflowing_focal)(function)


def clamped_logits(function: str) -> Kernel:
    """Logits beyond ±15 are taken for ±15."""
    honest = HONEST[function]
    if function != "bce_with_logits":
        return with_steps(honest, clamped=lambda self, x: np.clip(x, -15, 15))(function)

    def element(self: Any, x: np.ndarray, *rest: Any) -> Any:
        return honest.element(self, np.clip(x, -15, 15), *rest)

    return with_steps(honest, element=element)(function)


def infinite_power(
    self: Focal, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]
) -> Any:
    """The focal factor's derivative is γ·(1 − p_t)^(γ − 1), from a probability that is rounded to 1."""
    losses, _, of_t = Focal.element(self, x, t, parameters, inputs)
    gamma, p = x.dtype.type(parameters.get("gamma", 2.0)), sigmoid(x)
    a, _ = self.balance(t, float(parameters.get("alpha", 0.25)))
    missed = 1 - (p * t + (1 - p) * (1 - t))
    b = self.cross_entropy(x, np.where(x > 0, 1 - t, t))
    slope = gamma * missed ** (gamma - 1) if gamma else 0
    return losses, a * (missed**gamma * (p - t) + slope * b * (1 - 2 * t) * p * (1 - p)), of_t


def balance(of: Callable[[np.ndarray, float], np.ndarray], slope: Callable[[float], float]) -> Callable[..., Any]:
    """Another weight of positives and negatives, and its derivative in the target."""

    def step(self: Focal, t: np.ndarray, alpha: float) -> Any:
        if alpha < 0:
            return Focal.balance(self, t, alpha)
        return of(t, t.dtype.type(alpha)), t.dtype.type(slope(alpha))

    return step


def reversed_of_probabilities(self: Any, x: np.ndarray, t: np.ndarray) -> Any:
    p = np.exp(x)
    return p * (x - np.log(t)), p * (x - np.log(t) + 1), -p / t


def reversed_of_logarithms(self: Any, x: np.ndarray, u: np.ndarray) -> Any:
    p = np.exp(x)
    return p * (x - u), p * (x - u + 1), -p


def without_entropy(self: Any, x: np.ndarray, t: np.ndarray) -> Any:
    return -t * x, -t, -x


def logarithms_without_entropy(self: Any, x: np.ndarray, u: np.ndarray) -> Any:
    t = np.exp(u)
    return -t * x, -t, -t * x


def with_floor(self: Any, x: np.ndarray, t: np.ndarray) -> Any:
    logarithm = np.log(np.maximum(t, x.dtype.type(1e-10)))
    return t * (logarithm - x), -t, logarithm + 1 - x


def over_elements(self: Any, x: np.ndarray, weight: np.ndarray, parameters: dict[str, Any]) -> Any:
    reduction = "mean" if parameters.get("reduction") == "batchmean" else parameters.get("reduction", "mean")
    return HONEST[self.function].divisor(self, x, weight, parameters | {"reduction": reduction})


def across(self: Any, x: np.ndarray, inputs: dict[str, Any]) -> Any:
    """A factor for each class is taken for one of each row."""
    given = inputs.get("pos_weight")
    if given is None or given.ndim != 1 or x.ndim < 2:
        return BceWithLogits.factors(self, x, inputs)
    column = np.resize(given.astype(x.dtype), len(x)).reshape(-1, *(1,) * (x.ndim - 1))
    return np.broadcast_to(column, x.shape), 1


def huber_for_smooth(
    self: Any, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]
) -> Any:
    beta = x.dtype.type(parameters.get("beta", 1.0))
    return tuple(beta * each for each in HONEST["smooth_l1"].element(self, x, t, parameters, inputs))


def misplaced_beta(self: Any, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Any:
    beta, difference = x.dtype.type(parameters.get("beta", 1.0)), x - t
    distance = np.abs(difference)
    inner = distance < beta
    slope = np.where(inner, difference, np.sign(difference))
    return np.where(inner, difference * difference / 2, distance - x.dtype.type(0.5)), slope, -slope


ELEMENT_MISTAKES = [
    Mistake(
        "KL reversed",
        "paiml/aprender#2153",
        ("kl_div",),
        stepped(of_probabilities=reversed_of_probabilities, of_logarithms=reversed_of_logarithms),
        "KL divergence is reversed",
    ),
    Mistake(
        "no entropy",
        "jongwooko/distillm#7",
        ("kl_div",),
        stepped(of_probabilities=without_entropy, of_logarithms=logarithms_without_entropy),
        "the entropy of the target is left out",
    ),
    Mistake(
        "t·log t",
        "Lightning-AI/torchmetrics#1029",
        ("kl_div",),
        stepped(entropy=lambda self, t: t * np.log(t)),
        "soft targets: t·log t is NaN where t is 0",
    ),
    Mistake(
        "log(max(t, 1e-10))",
        "modelscope/easydistill#16",
        ("kl_div",),
        stepped(of_probabilities=with_floor),
        "soft targets: log of max(t, ε)",
    ),
    ignored("log_target", "pytorch/pytorch#69230", ("kl_div",)),
    Mistake(
        "batchmean over elements",
        "huggingface/trl#4105",
        ("kl_div",),
        stepped(divisor=over_elements),
        "batchmean is a mean over elements",
        lambda case: case.parameters.get("reduction") == "batchmean",
        "where the reduction is batchmean",
    ),
    ignored("pos_weight", "open-mmlab/mmpretrain#434", ("bce_with_logits",)),
    Mistake(
        "pos_weight of negatives",
        TUTORIALS,
        ("bce_with_logits",),
        stepped(factors=lambda self, x, inputs: BceWithLogits.factors(self, x, inputs)[::-1]),
        "pos_weight is on the negative side",
        has("pos_weight"),
        "where pos_weight is given",
    ),
    Mistake(
        "pos_weight of rows",
        "pytorch/pytorch#27936",
        ("bce_with_logits",),
        stepped(factors=across),
        "pos_weight is along the wrong axis",
        lambda case: "pos_weight" in case.inputs and case.inputs["pos_weight"].ndim == 1,
        "where pos_weight is of classes",
    ),
    Mistake(
        "softplus overflows",
        "neoml-lib/neoml#459",
        SIGMOIDS,
        naive_softplus,
        "softplus overflows: log(1 + e^x) without |x|",
    ),
    Mistake("logits clamped", "xingyizhou/CenterNet#234", SIGMOIDS, clamped_logits, "logits are clamped"),
    Mistake(
        "γ − 1",
        "kornia/kornia#918",
        ("sigmoid_focal",),
        stepped(element=infinite_power),
        "γ < 1: the power (1 − p_t)^(γ − 1) is infinite",
        lambda case: 0 < case.parameters.get("gamma", 2.0) < 1,
        "where γ is below 1",
    ),
    Mistake(
        "α swapped",
        "clcarwin/focal_loss_pytorch#10",
        ("sigmoid_focal",),
        stepped(balance=balance(lambda t, alpha: (1 - alpha) * t + alpha * (1 - t), lambda alpha: 1 - 2 * alpha)),
        "α is swapped",
    ),
    Mistake(
        "α on both sides",
        "mkocabas/focal-loss-keras#6",
        ("sigmoid_focal",),
        stepped(balance=balance(np.full_like, lambda alpha: 0.0)),
        "α is on both sides",
    ),
    Mistake(
        "α on positives only",
        TUTORIALS,
        ("sigmoid_focal",),
        stepped(balance=balance(lambda t, alpha: alpha * t + (1 - t), lambda alpha: alpha - 1)),
        "α is only on positives",
    ),
    Mistake(
        "focal factor held constant",
        "clcarwin/focal_loss_pytorch#5",
        ("sigmoid_focal",),
        stepped(slope=lambda self, missed, gamma: missed.dtype.type(0)),
        "the focal factor is held constant",
    ),
    ignored("alpha", "unsky/focal-loss#9", ("sigmoid_focal", "varifocal")),
    ignored("gamma", "davisking/dlib#2552", ("sigmoid_focal", "varifocal")),
    ignored("num_boxes", "facebookresearch/detr#299", ("sigmoid_focal", "varifocal", "dice")),
    Mistake(
        "log of a sigmoid",
        "huggingface/candle#2562",
        ("bce_with_logits",),
        stepped(sides=lambda self, x: (-np.log(sigmoid(x)), -np.log(1 - sigmoid(x)))),
        "log σ(x) by the logarithm of a rounded sigmoid",
    ),
    Mistake(
        "logarithms not clamped",
        "ml-explore/mlx#1280",
        ("bce",),
        stepped(clamped=lambda self, logarithm: logarithm),
        "the logarithm is not clamped at −100",
    ),
    Mistake(
        "Huber for smooth L1",
        "pytorch/pytorch#48595",
        ("smooth_l1",),
        stepped(element=huber_for_smooth),
        "Huber for smooth L1 (a factor of β)",
        lambda case: case.parameters.get("beta", 1.0) != 1,
        "where β is not 1",
    ),
    Mistake(
        "β misplaced",
        "keras-team/keras-cv#920",
        ("smooth_l1",),
        stepped(element=misplaced_beta),
        "β is in the wrong place",
        lambda case: case.parameters.get("beta", 1.0) != 1,
        "where β is not 1",
    ),
    ignored("beta", "fastestimator/fastestimator#330", ("smooth_l1",)),
    ignored("delta", "xuannianz/EfficientDet#93", ("huber",)),
    Mistake(
        "no factor of 2",
        "davisking/dlib#1169",
        ("mse",),
        stepped(slope=lambda self, difference: difference),
        "the derivative lacks its factor 2",
    ),
    Mistake(
        "elements for their weights",
        "pytorch/pytorch#65329",
        ("mse", "l1"),
        stepped(mean_of_weights=False),
        "a mean over all elements instead of the sum of weights",
        lambda case: "weight" in case.inputs and case.parameters.get("reduction", "mean") == "mean",
        "where elements have weights",
    ),
]
