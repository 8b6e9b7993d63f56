"""Kullback-Leibler divergence of log-probabilities from a target.

    target t:               ℓ = t·(log t − x),    ∂ℓ/∂x = −t,      ∂ℓ/∂t = log t + 1 − x
    target u = log t:       ℓ = e^u·(u − x),      ∂ℓ/∂x = −e^u,    ∂ℓ/∂u = e^u·(u − x + 1)

Where log t and x are close, which is where a student has learnt, log t is computed again in pairs, so that the small
difference keeps its digits; elements have both signs, and their pairs are summed. With log_target the power of two in
e^u is applied last: e^u may be too small for a float64 where e^u·(u − x) is not. At t = 0 the value is −0·x and torch's
derivative in t is NaN.

Torch counterpart: torch.nn.functional.kl_div.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from refloss import arrays, jit
from refloss.cases.draws import Drawn
from refloss.cases.elements import elements, log_targets
from refloss.kernels.elementwise.loop import Loop
from refloss.kernels.maps import exponentials
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.accurate import is_close, log_accurate
from refloss.numerics.exponential import exp, exp_pair, log_finely, scale
from refloss.numerics.pairs import negate, normalised, pair, product, two_sum
from refloss.numerics.triples import log_beyond
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import (
    Elementwise,
    Magnitudes,
    Parameter,
    log_probabilities,
    probabilities,
    reduction,
)
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients

# Digits for a value within an ulp are left above this share of the logarithm, which has an error of 2^-62.
_LEFT = 2.0**-10
# Below this share pairs leave too few digits as well; e^x is then within 2^-30 of t.
_NEXT = 2.0**-40
# e^−2000 times the largest float64 is 0, and e^800 times the least difference from 800 infinite.
_LEAST, _LARGEST = -2000.0, 800.0
# From here on a power of two is applied in two steps: scale reaches 2^±2040.
_STEP = 900


@jit.scalar
def _times_power(a, n):
    """A pair times 2^n, −2900 < n < 2040."""
    far = n < -2000
    first = 2.0**-_STEP if far else 1.0
    n += _STEP if far else 0
    return scale(a[0] * first, n), scale(a[1] * first, n)


@jit.scalar
def _loss_of_log_target(x, t, factor, parameters):
    clamped = _LEAST if t < _LEAST else (_LARGEST if t > _LARGEST else t)
    leading, tail, n = exp_pair(clamped, 0.0)
    half, half_low = two_sum(0.5 * t, -0.5 * x)
    value = _times_power(product((leading, tail), (half, half_low)), n + 1)
    steepened, steepened_low = two_sum(half, 0.5)
    slope = _times_power(product((leading, tail), (steepened, steepened_low + half_low)), n + 1)
    probability = _times_power((leading, tail), n)
    ordinary = abs(t) < np.inf and abs(x) < np.inf
    plain = exp(t) * (t - x)
    return (
        value if ordinary else pair(plain),
        negate(probability if ordinary else pair(exp(t))),
        slope if ordinary else pair(exp(t) * ((t - x) + 1.0)),
    )


@jit.scalar
def _of_log(x, t, log_t):
    """Value and derivatives from log t."""
    high, low = two_sum(log_t[0], -x)
    low += log_t[1]
    steep, steep_low = two_sum(high, 1.0)
    return product(pair(t), normalised((high, low))), pair(-t), normalised((steep, steep_low + low))


@jit.scalar
def _loss_of_target(x, t, factor, parameters):
    value, for_input, for_target = _of_log(x, t, log_finely(t))
    ordinary = t > 0.0 and t < np.inf
    plain = -t * x if t == 0.0 else np.nan * t
    return value if ordinary else pair(plain), for_input, for_target if ordinary else pair(np.nan)


@jit.scalar
def _is_close(x, t, factor, parameters, value, for_input, for_target):
    # Near log t = x and log t + 1 = x, |x| stands for the logarithm's size.
    positive = t > 0.0
    close = positive and is_close(for_target, max(abs(x), 1.0))
    return positive and abs(value) < _LEFT * abs(t * x), False, close


@jit.helper
def _accurate(x, t, factor, parameters):
    value, for_input, for_target = _of_log(x, t, log_accurate(t, 0.0))
    if abs(value[0]) < _NEXT * abs(t * x):
        value = product(pair(t), log_beyond(t, x))
    return value, for_input, for_target


LOOP = Loop("kl_div", _loss_of_target, _is_close, _accurate, signed=True)
LOOP_OF_LOG_TARGET = Loop("kl_div_log_target", _loss_of_log_target, signed=True)


def _magnitudes(x, t, case, unit):
    if case.parameters.get("log_target", False):
        p = np.exp(t)
        return Magnitudes(p * np.abs(t - x), p, p * (np.abs(t - x) + 1))
    log_t = np.abs(np.log(t))
    # The derivative of t·log t has a product with t that is divided by t.
    return Magnitudes(np.where(t == 0, 0.0, t * log_t) + np.abs(t * x), t, log_t + 1 + np.abs(x), 1 / t)


def _draw(draws):
    shape = draws.elements()
    parameters = draws.parameters(_PARAMETERS)
    x = draws.log_probabilities(*shape)
    if parameters.get("log_target"):
        # Of the exponentials of far ones float32 has nothing left.
        t = draws.log_probabilities(*shape, near=draws.limits.exact)
    elif draws.limits.exact or not draws.maybe():
        t = draws.probabilities(*shape)
    else:
        t = draws.cast(np.clip(draws.near(exponentials(x)), 0.0, 1.0))
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
        identities=("linear in the input", "logarithm of the target"),
        follows="torch.nn.functional.kl_div",
        positive=False,
        cases=elements(16, log_targets, probabilities=("target",), low=-9.0),
        draw=_draw,
        magnitudes=_magnitudes,
    )
)
def kl_div(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum", "none", "batchmean"] = "mean",
    log_target: bool = False,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
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
