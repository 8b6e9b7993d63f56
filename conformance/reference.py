"""A case run on both sides and compared, with one name for each tensor: loss, grad.<input>, intermediate.<name>."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from conformance import chain
from conformance.call import TORCH_FUNCTIONS, Call, array
from conformance.cases import CROSS_ENTROPY, IGNORED, Array
from conformance.heads import HEADS, Part, attributes, parts
from conformance.transducers import TRANSDUCERS, as_transformers_has_it
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Outcome = dict[str, Array]
UNSHIFTED = ("ForMaskedLM", "ForTokenClassification")
LINEAR = "linear_cross_entropy"
OF_ALIGNMENTS = ("ctc", "ForCTC")
OF_CLASSES = ("log_probabilities", "probabilities")


@contextmanager
def formula_precision() -> Iterator[None]:
    """transformers rounds logits to float32; for its formula in float64, what rounds gives float64 here."""
    log_softmax = torch.nn.functional.log_softmax

    def in_double(values: torch.Tensor, dim: int, **_: Any) -> torch.Tensor:
        return log_softmax(values.double(), dim)

    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(torch.nn.functional, "log_softmax", in_double),
    ):
        yield


def run_refloss(call: Call, grad_output: Any = None) -> Outcome:
    """What refloss makes of a call; with another cotangent if one is given."""
    return outcome_of(refloss_result(call, grad_output))


def refloss_result(call: Call, grad_output: Any = None) -> refloss.LossResult:
    """The same as refloss returns it."""
    loss = call.case.loss
    function = getattr(refloss, loss) if loss in TORCH_FUNCTIONS else refloss.LOSS_MAPPING[loss]
    result: refloss.LossResult = function(
        **call.arguments, grad_output=call.cotangent if grad_output is None else grad_output
    )
    return result


def outcome_of(result: refloss.LossResult) -> Outcome:
    """A result under one name for each tensor."""
    return {
        "loss": np.asarray(result.loss),
        **{f"component.{name}": np.asarray(value) for name, value in result.components.items()},
        **{f"grad.{name}": value.astype(np.float64) for name, value in result.grads.items()},
        **{f"intermediate.{name}": value for name, value in result.intermediates.items()},
    }


def run_torch(call: Call) -> Outcome:
    """What torch, or transformers, makes of a call."""
    loss, components = _losses(call)
    inputs = [call.arguments[name] for name in call.differentiable]
    grads = torch.autograd.grad(loss, inputs, call.cotangent)
    intermediates = _intermediates(call)
    return {
        "loss": array(loss),
        **{f"component.{name}": array(value) for name, value in components.items()},
        **{f"grad.{name}": array(grad) for name, grad in zip(call.differentiable, grads, strict=True)},
        **{f"intermediate.{name}": array(value) for name, value in intermediates.items()},
    }


def _losses(call: Call) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and its components if it has a z-loss."""
    of_logits, _ = chain.taken(call.arguments)
    if not {*chain.Chain._fields, "logits_dtype"} & {*call.arguments}:
        return _torch_loss(call) if call.case.loss in TORCH_FUNCTIONS else transformers_loss(call), {}
    if call.case.loss in TORCH_FUNCTIONS:
        given = dict(call.arguments)
        if call.case.loss == LINEAR:
            layer = {name: given.pop(name, None) for name in ("input", "linear_weight", "linear_bias", "logits_dtype")}
            given["logits"] = _linear(layer)
        cross_entropy, z_loss = chain.cross_entropy(**given)
    else:
        cross_entropy, z_loss = _token_losses(call, of_logits)
    parts = {"cross_entropy": cross_entropy, "z_loss": z_loss} if of_logits.z_loss else {}
    return cross_entropy + z_loss, parts


def _linear(arguments: dict[str, Any]) -> torch.Tensor:
    """A layer's outputs, which may be written down in a type."""
    x, weight, bias = arguments["input"], arguments["linear_weight"], arguments.get("linear_bias")
    *outputs, features = weight.shape
    logits = torch.nn.functional.linear(
        x, weight.reshape(math.prod(outputs), features), None if bias is None else bias.flatten()
    )
    logits = logits.reshape(*x.shape[:-1], *outputs)
    return chain.rounded(logits, arguments.get("logits_dtype"))


def _token_losses(call: Call, of_logits: chain.Chain) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of tokens, which transformers computes in float32 or more."""
    _, rest = chain.taken(call.arguments)
    z = of_logits.of_logits(rest["logits"].float())
    plain = copy.copy(call)
    plain.arguments = rest | {"logits": z}
    labels = shifted_labels(call)
    counted = labels != rest.get("ignore_index", IGNORED)
    rows = z.reshape(*labels.shape, rest.get("vocab_size", z.shape[-1]))
    items = rest.get("num_items_in_batch")
    squares = of_logits.squares(rows, -1, counted).sum() / (counted.sum() if items is None else items)
    return transformers_loss(plain), squares


def _torch_loss(call: Call) -> torch.Tensor:
    arguments = dict(call.arguments)
    values = arguments.pop(next(iter(arguments)))  # not everywhere named as in refloss
    return TORCH_FUNCTIONS[call.case.loss](values, **arguments)


def transformers_loss(call: Call, config: Any = None) -> torch.Tensor:
    """What transformers makes of a call; it may write to this configuration, by default a copy of the call's own."""
    arguments = dict(call.arguments)
    if "config" in arguments:
        arguments["config"] = attributes(arguments["config"]) if config is None else config
    elif "logits" in arguments:
        arguments.setdefault("vocab_size", arguments["logits"].shape[-1])
    mapping: Mapping[str, Any] = LOSS_MAPPING
    with as_transformers_has_it(call) if call.case.loss in TRANSDUCERS else nullcontext():
        loss: torch.Tensor = mapping[call.case.loss](**arguments)
    return loss


def _intermediates(call: Call) -> dict[str, torch.Tensor]:
    if call.case.loss == CROSS_ENTROPY:
        return cross_entropy_intermediates(call)
    if call.case.loss == LINEAR:
        return _linear_intermediates(call)
    if call.case.loss in OF_ALIGNMENTS:
        return _alignment_intermediates(call)
    if call.case.loss in TORCH_FUNCTIONS:
        return elementwise_intermediates(call)
    if call.case.loss in TRANSDUCERS:
        return {"nll": transformers_loss(call.with_arguments(reduction="none"))}
    return _head_intermediates(call) if call.case.loss in HEADS else token_intermediates(call)


def _alignment_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """The loss of every sequence."""
    arguments = call.arguments
    call.arguments = arguments | {"reduction": "none"}
    try:
        nll = _torch_loss(call) if call.case.loss in TORCH_FUNCTIONS else transformers_loss(call)
    finally:
        call.arguments = arguments
    return {"nll": nll}


def elementwise_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """The loss of every element, or of every row, and what a logit stands for: those that a result has."""
    if call.case.loss == "multilabel_soft_margin":
        return {"losses": _of_classes(**{name: call.arguments[name] for name in call.case.inputs})}
    told = FUNCTIONS[call.case.loss].specification.intermediates
    first, *others = call.arguments  # the first is not everywhere named as in refloss
    values = call.arguments[first]
    options = {name: call.arguments[name] for name in others} | {"reduction": "none"}
    losses = TORCH_FUNCTIONS[call.case.loss](values, **options)
    found = {"losses": losses, "nll": losses, "probabilities": values.sigmoid()}
    return {name: value for name, value in found.items() if name in told}


def _of_classes(input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:  # noqa: A002
    """The weighted losses of a row's classes."""
    positive, negative = torch.nn.functional.logsigmoid(input), torch.nn.functional.logsigmoid(-input)
    return -(target * positive + (1 - target) * negative) * weight


def cross_entropy_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """What the softmax of every row is, and -Σ t·log p, 0 for ignored rows; without weights and smoothing."""
    logits, target = chain.taken(call.arguments)[0].of_logits(call.arguments["logits"]), call.arguments["target"]
    return _row_intermediates(logits, target, min(1, logits.ndim - 1), call.arguments.get("ignore_index", IGNORED))


def _linear_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """The same of a layer's outputs."""
    given = call.arguments
    logits = chain.taken(given)[0].of_logits(_linear(given))
    found = _row_intermediates(logits, given["target"], min(1, logits.ndim - 1), given.get("ignore_index", IGNORED))
    return {name: found[name] for name in FUNCTIONS[LINEAR].specification.intermediates}


def token_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """The same for tokens, and the shifted labels where the loss shifts them."""
    logits, ignore_index = call.arguments["logits"], call.arguments.get("ignore_index", IGNORED)
    labels = shifted_labels(call)
    z = chain.taken(call.arguments)[0].of_logits(logits.float())
    rows = z.reshape(*labels.shape, call.arguments.get("vocab_size", logits.shape[-1]))
    result = _row_intermediates(rows, labels, rows.ndim - 1, ignore_index)
    result.update({name: result[name].reshape(logits.shape) for name in OF_CLASSES})
    return result if call.case.loss in UNSHIFTED else {**result, "shift_labels": labels}


def shifted_labels(call: Call) -> torch.Tensor:
    """The label that each row of logits is compared with."""
    labels: torch.Tensor = call.arguments["labels"]
    if call.case.loss in UNSHIFTED:
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
    return {
        "lse": torch.logsumexp(logits, class_axis),
        "nll": nll,
        "log_probabilities": log_probabilities,
        "probabilities": torch.softmax(logits, class_axis),
    }


def _head_intermediates(call: Call) -> dict[str, torch.Tensor]:
    """Those of the cross-entropies that a head is made of, and what the head itself adds."""
    result = {}
    for part in parts(call):
        own = _intermediates(part.call)
        if part.call.case.loss == CROSS_ENTROPY:
            own = {name: own[name].reshape(shape) for name, shape in row_shapes(call, part).items()}
        result.update({f"{part.prefix}{name}": value for name, value in own.items()})
        result.update({f"{part.prefix}{name}": value for name, value in part.intermediates.items()})
    return result


def row_shapes(call: Call, part: Part) -> dict[str, tuple[int, ...]]:
    """The shapes of a head's intermediates of a cross-entropy; resampled logits have no probabilities."""
    shape = tuple(call.arguments["labels"].shape) if "labels" in call.arguments else (-1,)
    shapes = dict.fromkeys(("lse", "nll"), shape)
    if "upsampled_logits" not in part.intermediates:
        shapes |= dict.fromkeys(OF_CLASSES, tuple(call.arguments[part.source].shape))
    return shapes


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
