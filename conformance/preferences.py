"""Losses of preferences in torch, by the formulas that trainers have, without what they add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

TAU = 0.05


def _smoothed(x: Tensor, epsilon: float) -> Tensor:
    # Without smoothing nothing is multiplied by 0: it may be infinite.
    return -logsigmoid(x) if not epsilon else -(1 - epsilon) * logsigmoid(x) - epsilon * logsigmoid(-x)


def _robust(x: Tensor, epsilon: float) -> Tensor:
    flipped = -(1 - epsilon) * logsigmoid(x) + epsilon * logsigmoid(-x)
    return -logsigmoid(x) if not epsilon else flipped / (1 - 2 * epsilon)


def _exo(x: Tensor, epsilon: float) -> Tensor:
    wanted = torch.tensor([1 - epsilon, epsilon], dtype=x.dtype).log()
    return x.sigmoid() * (logsigmoid(x) - wanted[0]) + (-x).sigmoid() * (logsigmoid(-x) - wanted[1])


def discopop(x: Tensor, _: float = 0.0) -> Tensor:
    """As it was found: e^−x may overflow."""
    share = torch.sigmoid(x / TAU)
    return -logsigmoid(x) * (1 - share) + torch.exp(-x) * share


OF_X: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": _smoothed,
    "simpo": _smoothed,
    "robust": _robust,
    "hinge": lambda x, _: relu(1 - x),
    "exo_pair": _exo,
    "discopop": discopop,
}


def log_odds(p: Tensor) -> Tensor:
    """log p − log(1 − p) of a logarithm, with all digits."""
    return p - torch.where(p > -0.6931, torch.log(-torch.expm1(p)), torch.log1p(-torch.exp(p)))


def _of_both(kind: str, a: Tensor, b: Tensor, beta: float) -> Tensor:
    if kind == "ipo":
        return (a - b - 1 / (2 * beta)) ** 2
    if kind == "nca_pair":
        return -logsigmoid(beta * a) - 0.5 * logsigmoid(-beta * a) - 0.5 * logsigmoid(-beta * b)
    if kind == "sppo_hard":
        return (a - 0.5 / beta) ** 2 + (b + 0.5 / beta) ** 2
    if kind == "apo_zero":
        return 1 - torch.sigmoid(beta * a) + torch.sigmoid(beta * b)
    return torch.sigmoid(beta * a) + 1 - torch.sigmoid(beta * (a - b))


def preference_loss(
    chosen_log_probs: Tensor,
    rejected_log_probs: Tensor,
    ref_chosen_log_probs: Tensor | float = 0.0,
    ref_rejected_log_probs: Tensor | float = 0.0,
    *,
    kind: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """refloss.preference_loss."""
    a, b = chosen_log_probs - ref_chosen_log_probs, rejected_log_probs - ref_rejected_log_probs
    if kind == "orpo":
        each = -a - beta * logsigmoid(log_odds(a) - log_odds(b))
    elif kind in OF_X:
        each = OF_X[kind](beta * (a - b) - gamma, label_smoothing)
    else:
        each = _of_both(kind, a, b, beta)
    return _reduced(each, reduction)


def kto(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    desirable: Tensor,
    kl: float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """refloss.kto."""
    beyond = log_probs - ref_log_probs - max(kl, 0.0)
    wanted = desirable_weight * (1 - torch.sigmoid(beta * beyond))
    unwanted = undesirable_weight * (1 - torch.sigmoid(-beta * beyond))
    return _reduced(torch.where(desirable, wanted, unwanted), reduction)


def _reduced(each: Tensor, reduction: str) -> Tensor:
    reductions: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "sum": torch.sum}
    return reductions[reduction](each) if reduction in reductions else each


FUNCTIONS: dict[str, Callable[..., Any]] = {"preference_loss": preference_loss, "kto": kto}
