"""Policy and value losses as they are defined, in torch: every step is an operation that autograd differentiates.

Written from the formulas and not from refloss. What does not count is left out before anything is computed, so that
neither its value nor its gradient can be anything but 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    Tensor = torch.Tensor


def clipped(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """X within 1 − low and 1 + high; None has no such side."""
    if low is None and high is None:
        return x
    return torch.clamp(x, None if low is None else 1 - low, None if high is None else 1 + high)


def surrogate(
    objective: str,
    r: Tensor,
    log_probs: Tensor,
    advantages: Tensor,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None,
    temperatures: tuple[float, float],
) -> Tensor:
    """What is minimised at a token, without weights and KL."""
    if objective == "cispo":
        return -clipped(r, clip_low, clip_high).detach() * advantages * log_probs
    if objective == "sapo":
        positive, negative = (torch.tensor(each, dtype=r.dtype) for each in temperatures)
        temperature = torch.where(advantages > 0, positive, negative)
        return -(4 / temperature) * torch.sigmoid(temperature * (r - 1)) * advantages
    gained = torch.minimum(r * advantages, clipped(r, clip_low, clip_high) * advantages)
    if dual_clip is not None:
        gained = torch.where(advantages < 0, torch.maximum(gained, dual_clip * advantages), gained)
    return -gained


def divergence(kl: str, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """An estimate of KL(policy‖reference) at a token."""
    difference = log_probs - ref_log_probs
    return {
        "k1": lambda: difference,
        "k2": lambda: difference**2 / 2,
        "k3": lambda: torch.exp(-difference) + difference - 1,
    }[kl]()


def aggregated(
    losses: Tensor, counts: Tensor, aggregation: str, num_items: float | None = None, sequences: str = "all"
) -> Tensor:
    """Losses [B, T] of tokens that count as one number; a mean is over "all" sequences, or over "non-empty" ones."""
    if aggregation == "none":
        return losses
    if aggregation == "sum":
        return losses.sum() if num_items is None else losses.sum() / num_items
    tokens = counts.sum(-1)
    if aggregation == "token-mean":
        return losses.sum() / (tokens.sum() if num_items is None else num_items)
    totals = losses.sum(-1)
    if aggregation == "seq-mean-token-mean":
        totals = totals / tokens.clamp(min=1)
    number = len(losses) if sequences == "all" else int((tokens > 0).sum())
    return totals.sum() / (number if num_items is None else num_items)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    mask: Tensor | None = None,
    ref_log_probs: Tensor | None = None,
    weights: Tensor | None = None,
    objective: str = "clip",
    ratio: str = "token",
    clip_low: float | None = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    kl: str | None = None,
    kl_coef: float = 0.0,
    kl_ratio_weighted: bool = False,
    aggregation: str = "token-mean",
    num_items: float | None = None,
    sequences: str = "all",
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
) -> Tensor:
    """refloss.policy_loss by its definition; log_probs [B, T], advantages [B] or [B, T]."""
    counts = torch.ones_like(log_probs, dtype=torch.bool) if mask is None else mask.bool()

    def counted(x: Tensor) -> Tensor:
        return torch.where(counts, x if x.ndim == 2 else x[:, None], 0.0)

    log_probs, old_log_probs, advantages = counted(log_probs), counted(old_log_probs), counted(advantages)
    log_ratio = log_probs - old_log_probs.detach()
    if ratio == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp(min=1)
    r = torch.exp(log_ratio)
    high = clip_low if clip_high is None else clip_high
    temperatures = sapo_temperature_pos, sapo_temperature_neg
    losses = surrogate(objective, r, log_probs, advantages, clip_low, high, dual_clip, temperatures)
    if weights is not None:
        losses = losses * counted(weights)
    if kl is not None and ref_log_probs is not None:
        penalty = divergence(kl, log_probs, counted(ref_log_probs))
        losses = losses + kl_coef * (penalty * r if kl_ratio_weighted else penalty)
    losses = torch.where(counts, losses, 0.0)
    return aggregated(losses, counts, aggregation, num_items, sequences)


def value_loss(
    values: Tensor,
    returns: Tensor,
    *,
    old_values: Tensor | None = None,
    mask: Tensor | None = None,
    clip: float | None = None,
    aggregation: str = "token-mean",
    num_items: float | None = None,
    sequences: str = "all",
) -> Tensor:
    """refloss.value_loss by its definition; values [B, T]."""
    counts = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    values, returns = torch.where(counts, values, 0.0), torch.where(counts, returns, 0.0)
    squares = (values - returns) ** 2
    if clip is not None and old_values is not None:
        old_values = torch.where(counts, old_values, 0.0)
        near = old_values + torch.clamp(values - old_values, -clip, clip)
        squares = torch.maximum(squares, (near - returns) ** 2)
    losses = torch.where(counts, squares / 2, 0.0)
    return aggregated(losses, counts, aggregation, num_items, sequences)


FORMULAS = {"policy_loss": (policy_loss, "log_probs"), "value_loss": (value_loss, "values")}


def run_torch(
    name: str, inputs: Mapping[str, Tensor], parameters: Mapping[str, Any], cotangent: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient, as refloss.testing.check asks a candidate for them."""
    formula, differentiable = FORMULAS[name]
    given = dict(inputs)
    given[differentiable] = given[differentiable].detach().clone().requires_grad_()
    loss = formula(**given, **parameters)  # type: ignore[operator]
    upstream = torch.as_tensor(cotangent, dtype=loss.dtype).expand_as(loss)
    (gradient,) = torch.autograd.grad(loss, given[differentiable], upstream)
    return loss, {differentiable: gradient}
