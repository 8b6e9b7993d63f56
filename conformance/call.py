"""A case's arguments as tensors, and the functions of torch that are called with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from conformance.cases import CROSS_ENTROPY, Array, Case, Layout

if TYPE_CHECKING:
    from collections.abc import Callable

DIFFERENTIABLE = ("logits", "auxiliary_logits", "start_logits", "end_logits", "pooled_logits", "input", "target")
DIFFERENTIABLE_WEIGHT = ("mse", "l1", "huber")  # torch has no gradient for the weights of the others
CASTS_TO_FLOAT32 = (
    "ForCausalLM",
    "ForMaskedLM",
    "ForConditionalGeneration",
    "CsmForConditionalGeneration",
    "ForTokenClassification",
)

TORCH_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    CROSS_ENTROPY: functional.cross_entropy,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "huber": functional.huber_loss,
    "bce": functional.binary_cross_entropy,
    "bce_with_logits": functional.binary_cross_entropy_with_logits,
    "kl_div": functional.kl_div,
    "nll": functional.nll_loss,
}


class Call:
    """A case's arguments as tensors of a dtype; both sides are given the very same ones."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case = case
        self.arguments: dict[str, Any] = {
            name: tensor(values, dtype, case.layout) for name, values in case.inputs.items()
        }
        for name, value in case.options.items():
            self.arguments[name] = torch.tensor(value) if isinstance(value, np.ndarray) else value
        names = (*DIFFERENTIABLE, "weight") if case.loss in DIFFERENTIABLE_WEIGHT else DIFFERENTIABLE
        self.differentiable = [
            name for name in names if name in self.arguments and self.arguments[name].is_floating_point()
        ]
        for name in self.differentiable:
            self.arguments[name].requires_grad_()
        # A cotangent has the loss's dtype; some heads compute half-precision losses in float32.
        casts = case.loss in CASTS_TO_FLOAT32
        self.compute_dtype = torch.promote_types(dtype, torch.float32) if casts else dtype
        self.cotangent = torch.as_tensor(case.grad_output, dtype=self.compute_dtype)


def tensor(values: Array, dtype: torch.dtype, layout: Layout = "contiguous") -> torch.Tensor:
    """An array as a tensor; floats in a dtype, and those with more than one axis in a layout."""
    result = torch.tensor(values)
    if not result.is_floating_point():
        return result
    result = result.to(dtype)
    if result.ndim < 2:
        return result
    if layout == "strided":
        return torch.stack([result, torch.full_like(result, torch.nan)], dim=-1)[..., 0]
    if layout == "transposed":
        return result.movedim(1, -1).contiguous().movedim(-1, 1)
    return result


def array(value: torch.Tensor) -> Array:
    """A tensor as an array: floats in float64, which holds every dtype's values exactly."""
    value = value.detach()
    result: Array = (value.double() if value.is_floating_point() else value).numpy()
    return result
