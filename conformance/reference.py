"""A case run on both sides and compared, with one name for each tensor: loss, grad.<input>, intermediate.<name>."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance.cases import CROSS_ENTROPY, IGNORED, Array, Case, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Outcome = dict[str, Array]
DIFFERENTIABLE = ("logits", "target")


class Call:
    """A case's arguments as tensors of a dtype; both sides are given the very same ones."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case = case
        self.arguments: dict[str, Any] = {
            name: tensor(values, dtype, case.layout if name == "logits" else "contiguous")
            for name, values in case.inputs.items()
        }
        for name, value in case.options.items():
            self.arguments[name] = torch.tensor(value) if isinstance(value, np.ndarray) else value
        self.differentiable = [
            name for name in DIFFERENTIABLE if name in self.arguments and self.arguments[name].is_floating_point()
        ]
        for name in self.differentiable:
            self.arguments[name].requires_grad_()
        # A cotangent has the loss's dtype; transformers computes half-precision losses in float32.
        self.compute_dtype = dtype if case.loss == CROSS_ENTROPY else torch.promote_types(dtype, torch.float32)
        self.cotangent = torch.as_tensor(case.grad_output, dtype=self.compute_dtype)


def tensor(values: Array, dtype: torch.dtype, layout: Layout = "contiguous") -> torch.Tensor:
    """An array as a tensor: floats in a dtype, and in a layout."""
    result = torch.tensor(values)
    if result.is_floating_point():
        result = result.to(dtype)
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


@contextmanager
def formula_precision() -> Iterator[None]:
    """transformers rounds logits to float32; for its formula in float64, Tensor.float gives float64 here."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def run_refloss(call: Call, grad_output: Any = None) -> Outcome:
    """What refloss makes of a call; with another cotangent if one is given."""
    function = refloss.cross_entropy if call.case.loss == CROSS_ENTROPY else refloss.LOSS_MAPPING[call.case.loss]
    result = function(**call.arguments, grad_output=call.cotangent if grad_output is None else grad_output)
    return {
        "loss": np.asarray(result.loss),
        **{f"grad.{name}": value.astype(np.float64) for name, value in result.grads.items()},
        **{f"intermediate.{name}": value for name, value in result.intermediates.items()},
    }


def run_torch(call: Call) -> Outcome:
    """What torch, or transformers, makes of a call."""
    loss = _torch_cross_entropy(call) if call.case.loss == CROSS_ENTROPY else _transformers_loss(call)
    inputs = [call.arguments[name] for name in call.differentiable]
    grads = torch.autograd.grad(loss, inputs, call.cotangent)
    intermediates = cross_entropy_intermediates(call) if call.case.loss == CROSS_ENTROPY else token_intermediates(call)
    return {
        "loss": array(loss),
        **{f"grad.{name}": array(grad) for name, grad in zip(call.differentiable, grads, strict=True)},
        **{f"intermediate.{name}": array(value) for name, value in intermediates.items()},
    }


def _torch_cross_entropy(call: Call) -> torch.Tensor:
    arguments = dict(call.arguments)
    return torch.nn.functional.cross_entropy(arguments.pop("logits"), **arguments)


def _transformers_loss(call: Call) -> torch.Tensor:
    arguments = {"vocab_size": call.arguments["logits"].shape[-1], **call.arguments}
    mapping: Mapping[str, Any] = LOSS_MAPPING
    loss: torch.Tensor = mapping[call.case.loss](**arguments)
    return loss


def cross_entropy_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """The log-sum-exp of every row and -Σ t·log p, 0 for ignored rows; without weights and smoothing."""
    logits, target = call.arguments["logits"], call.arguments["target"]
    return _row_intermediates(logits, target, min(1, logits.ndim - 1), call.arguments.get("ignore_index", IGNORED))


def token_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """The same for tokens, and the shifted labels where the loss shifts them."""
    logits, ignore_index = call.arguments["logits"], call.arguments.get("ignore_index", IGNORED)
    labels = shifted_labels(call)
    rows = logits.float().reshape(*labels.shape, call.arguments.get("vocab_size", logits.shape[-1]))
    result = _row_intermediates(rows, labels, rows.ndim - 1, ignore_index)
    return result if call.case.loss == "ForMaskedLM" else {**result, "shift_labels": labels}


def shifted_labels(call: Call) -> torch.Tensor:
    """The label that each row of logits is compared with."""
    labels: torch.Tensor = call.arguments["labels"]
    if call.case.loss == "ForMaskedLM":
        return labels
    if call.arguments.get("shift_labels") is not None:
        given: torch.Tensor = call.arguments["shift_labels"]
        return given
    ignore_index = call.arguments.get("ignore_index", IGNORED)
    return torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]


def _row_intermediates(
    logits: torch.Tensor, target: torch.Tensor, class_axis: int, ignore_index: int
) -> dict[str, torch.Tensor]:
    log_probabilities = torch.log_softmax(logits, class_axis)
    if target.is_floating_point():
        nll = -(target * log_probabilities).sum(class_axis)
    else:
        ignored = target == ignore_index
        label = target.masked_fill(ignored, 0).unsqueeze(class_axis)
        nll = -log_probabilities.gather(class_axis, label).squeeze(class_axis).masked_fill(ignored, 0.0)
    return {"lse": torch.logsumexp(logits, class_axis), "nll": nll}


def disagreements(actual: Outcome, expected: Outcome, tolerance: Outcome) -> list[str]:
    """A line for every tensor that is missing, misshapen or off; NaN and infinities must be where they are expected."""
    if actual.keys() != expected.keys():
        return [f"tensors {sorted(actual)} instead of {sorted(expected)}"]
    lines = []
    for name, wanted in expected.items():
        found = actual[name]
        if found.shape != wanted.shape:
            lines.append(f"{name} has shape {found.shape} instead of {wanted.shape}")
            continue
        allowed = np.broadcast_to(tolerance[name], wanted.shape)
        with np.errstate(invalid="ignore"):  # inf − inf, decided by ==
            off = ~((found == wanted) | (np.isnan(found) & np.isnan(wanted)) | (np.abs(found - wanted) <= allowed))
        if off.any():
            index = tuple(int(i) for i in np.argwhere(off)[0])
            lines.append(
                f"{name}{list(index)} = {found[index]:.9g} instead of {wanted[index]:.9g} ± {allowed[index]:.2g}"
                f" ({np.count_nonzero(off)} of {off.size} elements)"
            )
    return lines
