"""transformers' loss of Pocket TTS with its modules replaced by what they return, and its random draws by arguments."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch
from transformers.loss import loss_lsd
from transformers.loss.loss_utils import LOSS_MAPPING

from conformance.call import array

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.call import Call
    from conformance.reference import Outcome

KEYS = ("PocketTTSForConditionalGeneration", "GradiumPhononTTSForConditionalGeneration")
DEFAULTS = {"lsd_diagonal_weight": 0.75, "lsd_distill_probability": 0.25, "eos_loss_weight": 0.1}
DRAWN = {"lsd_time_logit_mean": 0.0, "lsd_time_logit_std": 1.0}


class _Times(NamedTuple):
    """Two draws that are sorted already, and on which neither scale nor sigmoid has an effect."""

    start: torch.Tensor
    end: torch.Tensor

    def __mul__(self, _: Any) -> _Times:
        return self

    def __add__(self, _: Any) -> _Times:
        return self

    def min(self, _: int) -> tuple[torch.Tensor]:
        """The earlier one."""
        return (self.start,)

    def max(self, _: int) -> tuple[torch.Tensor]:
        """The later one."""
        return (self.end,)


def _in_turn(values: Iterable[Any]) -> Any:
    """What returns one value after the other, whatever it is called with."""
    left = iter(values)
    return lambda *_, **__: next(left)


def loss(arguments: Mapping[str, Any], **changed: float) -> torch.Tensor:
    """transformers' function of the arrays that refloss.pocket_tts takes; with other entries of its configuration."""
    given, is_distilled = arguments, "jump_velocity" in arguments
    config = {name: given.get(name, value) for name, value in DEFAULTS.items()}
    samples = len(given["velocity"]) // len(given["targets"])
    config |= DRAWN | changed | {"flow_loss_num_samples": samples}
    velocities, variances = [given["velocity"]], [_column(given["log_variance"])]
    draws: list[Any] = [given["noise"], torch.zeros_like(given["noise"][:, :1])]
    jump = None
    if is_distilled:
        velocities.append(given["end_velocity"])
        variances.append(_column(given["jump_log_variance"]))
        draws.append(_Times(given["start_times"].reshape(-1), given["end_times"].reshape(-1)))
        jump = given["jump_velocity"], given["jump_velocity_dt"]
    replaced = {
        (torch, "randn_like"): _in_turn(draws),
        (torch, "sigmoid"): lambda value: value,
        (torch, "rand"): lambda *_, **__: 0.0 if is_distilled else 1.0,
        (torch.func, "jvp"): lambda *_: jump,
        # The gradient of what it returns is asked for, not that of what it is given.
        (loss_lsd._InputOnlyGrad, "apply"): lambda inputs, function: function(inputs),
    }
    with ExitStack() as stack:
        for (owner, name), value in replaced.items():
            stack.enter_context(mock.patch.object(owner, name, value))
        mapping: Mapping[str, Any] = LOSS_MAPPING
        result: torch.Tensor = mapping[KEYS[0]](
            flow_head=_in_turn(velocities),
            conditions=torch.zeros(len(given["targets"]), 1),
            targets=given["targets"],
            eos_logits=given["eos_logits"],
            eos_labels=given["eos_labels"],
            config=SimpleNamespace(**config),
            loss_weighting=_in_turn(variances),
            distill_generator=None,
            training=given.get("training", True),
        )
    return result


def _column(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1)


def run(call: Call) -> Outcome:
    """The loss, gradients and components of a call."""
    total = loss(call.arguments)
    inputs = [call.arguments[name] for name in call.differentiable]
    grads = torch.autograd.grad(total, inputs, call.cotangent.to(total.dtype))
    parts = {"flow_diagonal": loss(call.arguments, lsd_diagonal_weight=1.0, eos_loss_weight=0.0)}
    if "jump_velocity" in call.arguments:
        alone = loss(call.arguments | {"training": False}, lsd_diagonal_weight=0.0, eos_loss_weight=0.0)
        parts["flow_distill"] = alone
    parts["eos"] = loss_lsd.end_of_speech_loss(call.arguments["eos_logits"], call.arguments["eos_labels"])
    return {
        "loss": array(total),
        "component.flow_distill": array(torch.zeros_like(total)),
        **{f"component.{name}": array(value) for name, value in parts.items()},
        **{f"grad.{name}": array(grad) for name, grad in zip(call.differentiable, grads, strict=True)},
    }
