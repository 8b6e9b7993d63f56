"""A case's arguments as tensors, and the functions of torch that are called with them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from conformance.cases import Array, Case, Layout
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.registry import Function

CASTS_TO_FLOAT32 = (
    "ForCausalLM",
    "ForMaskedLM",
    "ForConditionalGeneration",
    "CsmForConditionalGeneration",
    "ForTokenClassification",
    "ForCTC",
    "ParakeetForRNNT",
    "ParakeetForTDT",
)

_FUNCTIONAL = f"{functional.__name__}."
TORCH_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    name: getattr(functional, function.specification.follows.removeprefix(_FUNCTIONAL))
    for name, function in FUNCTIONS.items()
    if function.specification.follows.startswith(_FUNCTIONAL)
}


def function_of(loss: str) -> Function:
    """A function of refloss by its name, or by a key of LOSS_MAPPING."""
    return next(each for name, each in FUNCTIONS.items() if name == loss or loss in each.specification.keys)


class Call:
    """A case's arguments as tensors of a dtype; both sides are given the very same ones."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case = case
        self.arguments: dict[str, Any] = {
            name: tensor(values, dtype, case.layout) for name, values in case.inputs.items()
        }
        for name, value in case.options.items():
            self.arguments[name] = torch.tensor(value) if isinstance(value, np.ndarray) else value
        self.differentiable = [
            name
            for name in function_of(case.loss).differentiable
            if name in self.arguments and self.arguments[name].is_floating_point()
        ]
        for name in self.differentiable:
            self.arguments[name].requires_grad_()
        # A cotangent has the loss's dtype; some heads compute half-precision losses in float32.
        casts = case.loss in CASTS_TO_FLOAT32
        self.compute_dtype = torch.promote_types(dtype, torch.float32) if casts else dtype
        self.cotangent = torch.as_tensor(case.grad_output, dtype=self.compute_dtype)

    def with_arguments(self, **others: Any) -> Call:
        """The same call with some arguments replaced."""
        other = copy.copy(self)
        other.arguments = self.arguments | others
        return other


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


def value_and_gradient(function: Callable[..., torch.Tensor], *given: Any, of: int = 0) -> tuple[Array, Array]:
    """A loss of torch's tensors, and the gradient of its sum for one of them."""
    tensors = [each.detach().clone() if isinstance(each, torch.Tensor) else each for each in given]
    tensors[of].requires_grad_()
    loss = function(*tensors)
    (gradient,) = torch.autograd.grad(loss.sum(), tensors[of])
    return array(loss), array(gradient)
