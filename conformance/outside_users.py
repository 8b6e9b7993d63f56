"""Implementations that people train with, as functions that refloss.testing.check drives through its cases.

Each is called in the way that its own documentation shows, in the type that its inputs have; what it does not offer,
such as weights in optax, is not asked of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import torch
from torch.nn import functional
from transformers.loss import loss_for_object_detection
from transformers.loss.loss_utils import LOSS_MAPPING

from refloss.cases.source import Case
from refloss.registry import FUNCTIONS
from refloss.testing.spacing import FLOATS

Arrays = dict[str, Any]
Answer = tuple[Any, Arrays]
Call = Callable[[Arrays, dict[str, Any], Any], Answer]


class OutsideUser(NamedTuple):
    """An implementation: its losses under refloss's names, and which cases it has."""

    name: str
    losses: Mapping[str, Call]
    to_native: Callable[[np.ndarray], Any]
    offers: Callable[[Case], bool]

    def computes_in(self, case: Case) -> str:
        """The type that the implementation computes a case in: the coarsest of its inputs."""
        return str(max(dtypes_of(case), key=lambda dtype: FLOATS[dtype].eps))


def dtypes_of(case: Case) -> list[Any]:
    """The types of a case's float inputs."""
    return [value.dtype for value in case.inputs.values() if value.dtype in FLOATS]


def torch_tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor, bfloat16 too; integers as torch wants its labels."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return tensor if tensor.is_floating_point() else tensor.long()


def _differentiable(function: str, inputs: Arrays, is_float: Callable[[Any], bool]) -> list[str]:
    return [name for name in FUNCTIONS[function].differentiable if name in inputs and is_float(inputs[name])]


def call_torch(function: str, loss_of: Callable[..., torch.Tensor]) -> Call:
    """Differentiated by autograd."""

    def call(inputs: Arrays, parameters: dict[str, Any], cotangent: Any) -> Answer:
        names = _differentiable(function, inputs, torch.is_floating_point)
        leaves = [inputs[name].requires_grad_() for name in names]
        loss = loss_of(**inputs, **parameters)
        upstream = torch.as_tensor(cotangent, dtype=loss.dtype).expand_as(loss)
        gradients = torch.autograd.grad(loss, leaves, upstream)
        return loss.detach(), dict(zip(names, gradients, strict=True))

    return call


def _torch_function(function: Callable[..., Any], first: str = "input") -> Callable[..., torch.Tensor]:
    """One of torch.nn.functional, whose first argument is always called input."""

    def loss_of(**arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = function(arguments.pop(first), **arguments)
        return loss

    return loss_of


def _of_transformers(key: str) -> Callable[..., torch.Tensor]:
    mapping: Mapping[str, Any] = LOSS_MAPPING

    def loss_of(**arguments: Any) -> torch.Tensor:
        arguments.setdefault("vocab_size", arguments["logits"].shape[-1])
        loss: torch.Tensor = mapping[key](**arguments)
        return loss

    return loss_of


def _of_masks(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def loss_of(inputs: torch.Tensor, targets: torch.Tensor, num_boxes: float = 1.0, **options: Any) -> torch.Tensor:
        return function(inputs.flatten(1), targets.flatten(1), num_boxes, **options)

    return loss_of


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "smooth_l1": functional.smooth_l1_loss,
    "huber": functional.huber_loss,
    "bce": functional.binary_cross_entropy,
    "kl_div": functional.kl_div,
    "nll": functional.nll_loss,
}
TORCH_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    **{name: _torch_function(function) for name, function in _ELEMENTWISE.items()},
    "cross_entropy": _torch_function(functional.cross_entropy, "logits"),
    "bce_with_logits": _torch_function(functional.binary_cross_entropy_with_logits, "logits"),
    "causal_lm": _of_transformers("ForCausalLM"),
    "masked_lm": _of_transformers("ForMaskedLM"),
    "sigmoid_focal": _of_masks(loss_for_object_detection.sigmoid_focal_loss),
    "dice": _of_masks(loss_for_object_detection.dice_loss),
}
# transformers' two have their one reduction.
_TORCH_REDUCES = {"sigmoid_focal": "mean", "dice": "sum"}


# Parameters of the losses of language that none of them has.
_CHAIN = {"logit_scale", "softcap", "temperature", "z_loss"}


def _torch_offers(case: Case) -> bool:
    if _CHAIN & case.parameters.keys():
        return False
    only = _TORCH_REDUCES.get(case.function)
    return only is None or case.parameters.get("reduction", only) == only


# transformers computes the losses of language models in float32, whatever the logits are.
_CAST_TO_FLOAT32 = {"causal_lm", "masked_lm"}


class TorchUser(OutsideUser):
    """torch, and transformers' losses."""

    def computes_in(self, case: Case) -> str:
        """The same, unless transformers casts."""
        return "float32" if case.function in _CAST_TO_FLOAT32 else super().computes_in(case)


def compiled(loss_of: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A loss that is compiled when it is first called."""

    def call(**arguments: Any) -> torch.Tensor:
        loss: torch.Tensor = made()(**arguments)
        return loss

    @functools.cache
    def made() -> Callable[..., Any]:
        return torch.compile(loss_of, dynamic=False)

    return call


# Each takes seconds to compile.
COMPILED_CASES = (
    "cross_entropy-bfloat16-mean",
    "mse-weighted",
    "bce_with_logits-weighted-pos-weight",
)


def call_jax(function: str, loss_of: Callable[..., jax.Array]) -> Call:
    """Differentiated by JAX, compiled by XLA once for all inputs of some shapes and types."""

    @functools.partial(jax.jit, static_argnums=1)
    def loss_and_gradients(inputs: Arrays, parameters: tuple[tuple[str, Any], ...], cotangent: Any) -> Answer:
        names = _differentiable(function, inputs, lambda value: jnp.issubdtype(value.dtype, jnp.floating))
        loss, backward = jax.vjp(
            lambda leaves: loss_of(**inputs | leaves, **dict(parameters)), {name: inputs[name] for name in names}
        )
        return loss, backward(jnp.broadcast_to(jnp.asarray(cotangent, loss.dtype), loss.shape))[0]

    def call(inputs: Arrays, parameters: dict[str, Any], cotangent: Any) -> Answer:
        answer: Answer = loss_and_gradients(inputs, tuple(sorted(parameters.items())), cotangent)
        return answer

    return call


def _reduced(losses: Any, reduction: str, count: Any = None) -> Any:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if count is None else losses.sum() / count


def _optax_cross_entropy(
    logits: jax.Array, target: jax.Array, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    axis = min(1, logits.ndim - 1)
    if jnp.issubdtype(target.dtype, jnp.floating):
        return _reduced(optax.losses.softmax_cross_entropy(logits, target, axis=axis), reduction)
    counts = target != ignore_index
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counts, target, 0), axis=axis)
    return _reduced(jnp.where(counts, losses, 0), reduction, counts.sum().astype(losses.dtype))


def _optax_sigmoid_focal(
    inputs: jax.Array,
    targets: jax.Array,
    num_boxes: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
) -> Any:
    losses = optax.losses.sigmoid_focal_loss(inputs, targets, alpha=alpha if alpha >= 0 else None, gamma=gamma)
    if reduction == "none":
        return losses
    return (losses.sum() if reduction == "sum" else losses.mean(axis=1).sum()) / num_boxes


def _optax_dice(inputs: jax.Array, targets: jax.Array, num_boxes: float = 1.0, reduction: str = "sum") -> Any:
    # Numerator and denominator are half of those of DETR, whose 1 is added to both.
    pixels = (inputs.reshape(len(inputs), -1, 1), targets.reshape(len(inputs), -1, 1))
    losses = optax.losses.dice_loss(*pixels, smooth=0.5)
    return losses if reduction == "none" else losses.sum() / num_boxes


def _optax_elements(function: Callable[..., Any]) -> Callable[..., Any]:
    def loss_of(target: jax.Array, reduction: str = "mean", **arguments: Any) -> Any:
        values = arguments.pop("input", arguments.pop("logits", None))
        return _reduced(function(values, target, **arguments), reduction)

    return loss_of


OPTAX_LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": _optax_cross_entropy,
    "sigmoid_focal": _optax_sigmoid_focal,
    "dice": _optax_dice,
    "mse": _optax_elements(optax.losses.squared_error),
    "huber": _optax_elements(optax.losses.huber_loss),
    "bce_with_logits": _optax_elements(optax.losses.sigmoid_binary_cross_entropy),
}


def _optax_offers(case: Case) -> bool:
    options = {"weight", "pos_weight", "label_smoothing"} | _CHAIN
    # XLA takes a third of a second to compile a case. float64 is not JAX's default, float16 not its choice of 16 bits.
    offered = {"float32", "bfloat16"}
    # Nor has it integers of more than 32 bits.
    if any(value.dtype.kind == "i" and np.any(np.abs(value) >= 2**31) for value in case.inputs.values()):
        return False
    return not options & {*case.inputs, *case.parameters} and {str(dtype) for dtype in dtypes_of(case)} <= offered


OUTSIDE_USERS = (
    TorchUser(
        "torch", {name: call_torch(name, loss) for name, loss in TORCH_LOSSES.items()}, torch_tensor, _torch_offers
    ),
    TorchUser(
        "torch.compile",
        {name: call_torch(name, compiled(TORCH_LOSSES[name])) for name in ("cross_entropy", "mse", "bce_with_logits")},
        torch_tensor,
        lambda case: case.id in COMPILED_CASES,
    ),
    OutsideUser(
        "optax", {name: call_jax(name, loss) for name, loss in OPTAX_LOSSES.items()}, jnp.asarray, _optax_offers
    ),
)
