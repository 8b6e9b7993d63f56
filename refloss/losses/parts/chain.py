"""What a head does to its logits before their softmax, and the z-loss beside their cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refloss import arrays
from refloss.device import host
from refloss.kernels.logits.chain import Chain
from refloss.kernels.logits.run import ChainTask, chained_loss, log_probabilities
from refloss.kernels.softmax.loop import SoftmaxLoop
from refloss.losses.parts.softmax import RowOptions, result_of, softmax_rows, task_of
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Parameter

COMPONENTS = ("cross_entropy", "z_loss")
# Of every loss whose logits go through a chain.
CHAIN_PARAMETERS = {
    "logit_scale": Parameter(float, (1.0, 0.0625, 1.75)),
    "softcap": Parameter(float, (30.0, 1.5)),
    "temperature": Parameter(float, (1.0, 0.7, 3.0)),
}
Z_LOSS = {"z_loss": Parameter(float, (0.0, 1e-4, 0.5))}


class LogitOptions(NamedTuple):
    """The chain z·scale → c·tanh(z/c) → ÷ temperature, and the factor of lse²."""

    chain: Chain
    z_loss: float

    @property
    def changes_nothing(self) -> bool:
        """Whether the loss is that of the logits as they are."""
        return self.chain == PLAIN and self.z_loss == 0.0


PLAIN = Chain(1.0, np.inf, 1.0)
UNCHANGED = LogitOptions(PLAIN, 0.0)


def logit_options(logit_scale: Any, softcap: Any, temperature: Any, z_loss: Any = 0.0) -> LogitOptions:
    """Checked options of a chain."""
    # What nearly every call has is told at once.
    plain = softcap is None and type(logit_scale) is type(temperature) is type(z_loss) is float
    if plain and logit_scale == temperature == 1.0 and z_loss == 0.0:
        return UNCHANGED
    scale = arrays.number(logit_scale, "logit_scale", finite=True)
    cap = np.inf if softcap is None else arrays.number(softcap, "softcap", finite=True, positive=True)
    divisor = arrays.number(temperature, "temperature", finite=True, positive=True)
    factor = arrays.number(z_loss, "z_loss", finite=True, low=0.0)
    return LogitOptions(Chain(scale, cap, divisor), factor)


def cotangents(grad_output: Any, shape: tuple[int, ...], z_loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Those of the cross-entropy and of the z-loss: of their sum, or by their names if there are two."""
    if not isinstance(grad_output, Mapping):
        both = arrays.cotangent(grad_output, shape)
        return both, both
    if z_loss == 0.0:
        raise ValueError("grad_output is a mapping, and z_loss is 0: without one the loss has no components")
    unknown = [name for name in grad_output if name not in COMPONENTS]
    if unknown:
        raise ValueError(f"grad_output has {unknown[0]!r}; expected components: {', '.join(COMPONENTS)}")
    of_cross_entropy, of_z_loss = (
        arrays.cotangent(grad_output.get(name, 0.0), shape, f"grad_output[{name!r}]") for name in COMPONENTS
    )
    return of_cross_entropy, of_z_loss


def cross_entropy_rows(
    loop: SoftmaxLoop,
    logits: np.ndarray,
    target: np.ndarray,
    options: Options,
    of_logits: LogitOptions,
    **of_rows: Any,
) -> LossResult:
    """Cross-entropy of checked arrays after a chain; loop is for logits as they are, of_rows is RowOptions."""
    if of_logits is UNCHANGED or of_logits.changes_nothing:
        return softmax_rows(loop, logits, target, options, **of_rows)
    rows = RowOptions(**of_rows)
    cotangent, z_cotangent = cotangents(options.grad_output, rows.loss_shape(logits), of_logits.z_loss)
    task, wanted = task_of(loop, logits, target, options, cotangent, rows)
    given = ChainTask(task, of_logits.chain, of_logits.z_loss, z_cotangent)
    answer = chained_loss(given, options.backend)
    on_host = given._replace(task=task._replace(logits=host(logits)))
    log_p = partial(log_probabilities, on_host, options.backend)
    result = result_of(task, wanted, answer.loss, answer.nll, answer.lse, log_p)
    if of_logits.z_loss != 0.0:
        shape = np.shape(result.loss)
        for name, part in zip(COMPONENTS, (answer.cross_entropy, answer.z_loss), strict=True):
            result.components[name] = part.reshape(shape) if shape else part
    return result
