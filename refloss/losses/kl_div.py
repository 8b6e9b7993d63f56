"""Kullback-Leibler divergence of log-probabilities from a target.

    target t:               ℓ = t·(log t − x),    ∂ℓ/∂x = −t,      ∂ℓ/∂t = log t + 1 − x
    target u = log t:       ℓ = e^u·(u − x),      ∂ℓ/∂x = −e^u,    ∂ℓ/∂u = e^u·(u − x + 1)

log t is kept as a pair, so that the difference of close distributions keeps its digits. At t = 0 the value is −0·x
and torch's derivative in t is NaN.

Torch counterpart: torch.nn.functional.kl_div.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refloss import arrays, jit
from refloss.cases.draws import Drawn
from refloss.cases.elements import elements, log_targets
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.exponential import exp, exp_pair, log_pair, scale
from refloss.numerics.pairs import pair, product, rounded, two_sum
from refloss.options import Gradients, Options
from refloss.result import LossResult
from refloss.specification import (
    Elementwise,
    Magnitudes,
    Parameter,
    log_probabilities,
    probabilities,
    reduction,
)


@jit.scalar
def _loss_of_log_target(x, t, factor, parameters):
    difference = two_sum(t, -x)
    # e^−800 < 2^-1075, and e^710 > 2^1024.
    clamped = -800.0 if t < -800.0 else (710.0 if t > 710.0 else t)
    leading, tail, n = exp_pair(clamped, 0.0)
    probability = exp(t)
    value = product((scale(leading, n), scale(tail, n)), difference)
    return value, -probability, probability * ((t - x) + 1.0)


@jit.scalar
def _loss_of_target(x, t, factor, parameters):
    if t > 0.0 and t < np.inf:
        log_t = log_pair(t, 0.0)
        high, low = two_sum(log_t[0], -x)
        return product(pair(t), (high, low + log_t[1])), -t, (rounded(log_t) - x) + 1.0
    return ((-t * x if t == 0.0 else np.nan * t), 0.0), -t, np.nan


LOOP = Loop("kl_div", _loss_of_target)
LOOP_OF_LOG_TARGET = Loop("kl_div_log_target", _loss_of_log_target)


def _magnitudes(x, t, case, unit):
    if case.parameters.get("log_target", False):
        p = np.exp(t)
        return Magnitudes(p * np.abs(t - x), p, p * (np.abs(t - x) + 1))
    log_t = np.abs(np.log(t))
    return Magnitudes(np.where(t == 0, 0.0, t * log_t) + np.abs(t * x), t, log_t + 1 + np.abs(x))


def _draw(draws):
    shape = draws.elements()
    parameters = draws.parameters(_PARAMETERS)
    x = draws.log_probabilities(*shape)
    t = draws.log_probabilities(*shape) if parameters.get("log_target") else draws.probabilities(*shape)
    return Drawn({"input": x, "target": t}, parameters, shape)


_PARAMETERS = {
    "reduction": reduction("mean", "sum", "none", "batchmean"),
    "log_target": Parameter(bool, (False, True)),
}


@loss(
    Elementwise(
        arguments={"input": log_probabilities(), "target": probabilities()},
        parameters=_PARAMETERS,
        order=70,
        follows="torch.nn.functional.kl_div",
        positive=False,
        cases=elements(16, log_targets, probabilities=("target",)),
        draw=_draw,
        magnitudes=_magnitudes,
    )
)
def kl_div(
    input: Any,  # noqa: A002
    target: Any,
    *,
    reduction: str = "mean",
    log_target: bool = False,
    grad_output: Any = 1.0,
    grad: Gradients = True,
    grad_dtype: Any = None,
    out: np.ndarray | None = None,
    backend: str = "auto",
) -> LossResult:
    """Kullback-Leibler divergence, as torch.nn.functional.kl_div: input holds log-probabilities.

    ℓ_i = t_i·(log t_i − x_i), or e^u_i·(u_i − x_i) with log_target; "mean" divides the sum by the number of elements
    (which is not the mathematical divergence), "batchmean" by the first axis. With c = grad_output over that: ∂/∂x_i
    = −c·t_i, ∂/∂t_i = c·(log t_i + 1 − x_i); with log_target −c·e^u_i and c·e^u_i·(u_i − x_i + 1). Held constant:
    nothing.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch broadcasts where shapes differ.
        reduction: "mean", "batchmean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.
        log_target: target holds log-probabilities.

    Returns:
        loss in nats. grads: "input" and "target".
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        t = 0: the value is 0 (NaN where x is −inf), the derivative in t NaN, as torch has it. t < 0: NaN. No
        elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", ("mean", "batchmean", "sum", "none"))
    x, t = arrays.float_array(input, "input"), arrays.float_array(target, "target")
    by_batch = reduction == "batchmean"
    divisor = (x.shape[0] if x.ndim else 1) if by_batch else x.size
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP_OF_LOG_TARGET if arrays.flag(log_target, "log_target") else LOOP,
        {"input": x, "target": t},
        options,
        divisor=divisor,
        reduction="mean" if by_batch else reduction,
    )
