"""What a head does to its logits before their softmax, and the z-loss beside it, in torch as models write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


class Chain(NamedTuple):
    """The options of a chain, and ζ."""

    logit_scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    z_loss: float = 0.0

    def of_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale, c·tanh(z/c), temperature."""
        z = logits * self.logit_scale
        if self.softcap is not None:
            z = self.softcap * (
                _saturating(z / self.softcap) if z.dtype == torch.float64 else torch.tanh(z / self.softcap)
            )
        return z / self.temperature

    def squares(self, z: torch.Tensor, class_axis: int, counted: torch.Tensor) -> torch.Tensor:
        """ζ·lse² of rows that count, 0 of others."""
        return self.z_loss * torch.where(counted, torch.logsumexp(z, class_axis) ** 2, 0)


def _saturating(z: torch.Tensor) -> torch.Tensor:
    """tanh, whose derivative 1 − tanh² is 0 in torch where it is small."""
    sign = torch.where(z >= 0, 1.0, -1.0).to(z.dtype)
    small = torch.exp(-2 * sign * z)
    return sign * (1 - 2 * small / (1 + small))


def taken(arguments: Mapping[str, Any]) -> tuple[Chain, dict[str, Any]]:
    """A call's chain, and its other arguments."""
    own = {name: arguments[name] for name in Chain._fields if name in arguments}
    return Chain(**own), {name: value for name, value in arguments.items() if name not in Chain._fields}


def counts(target: torch.Tensor, class_axis: int, ignore_index: int) -> torch.Tensor:
    """Which rows count."""
    if target.is_floating_point():
        return torch.ones_like(target.select(class_axis, 0), dtype=torch.bool)
    return target != ignore_index


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy after a chain, and the z-loss of counted rows, divided as it is: two losses."""
    chain, rest = taken(options)
    class_axis = min(1, logits.ndim - 1)
    z = chain.of_logits(logits)
    loss = torch.nn.functional.cross_entropy(z, target, weight, **rest)
    counted = counts(target, class_axis, rest.get("ignore_index", -100))
    squares = chain.squares(z, class_axis, counted)
    reduction = rest.get("reduction", "mean")
    if reduction != "none":
        squares = squares.sum()
    if reduction == "mean":
        has_weights = weight is not None and not target.is_floating_point()
        squares = squares / (weight[target[counted]].sum() if has_weights else counted.sum())  # type: ignore[index]
    return loss, squares


def rounded(logits: torch.Tensor, dtype: str | None) -> torch.Tensor:
    """Logits that are written down in a type, with the gradient straight through."""
    if dtype is None:
        return logits
    return logits + (logits.to(getattr(torch, dtype)).to(logits.dtype) - logits).detach()
