"""Poisson negative log-likelihood of counts, whose rate, or its logarithm, is predicted.

    a logarithm x:    ℓ = e^x − t·x + S,               ∂ℓ/∂x = e^x − t,          ∂ℓ/∂t = −x + S′
    a rate x:         ℓ = x − t·log(x + ε) + S,        ∂ℓ/∂x = 1 − t/(x + ε),    ∂ℓ/∂t = −log(x + ε) + S′
    Stirling's term:  S = t·log t − t + log(2πt)/2,    S′ = log t + 1/2t         if full, and t > 1; else 0

A count of 0 or less has no Stirling term, but torch multiplies the derivative of one, which has a logarithm of it, by
0: ∂ℓ/∂t is NaN there if full.

Where a rate is learnt, e^x and t, log t and x, and the terms of the value nearly cancel: what has lost more than three
bits there is computed again, with exponentials and logarithms as pairs. x + ε is a pair, and 1 − t/(x + ε) is
(x − t + ε)/(x + ε), whose sum has no error.

Torch counterpart: torch.nn.functional.poisson_nll_loss.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.draws import Drawn
from refloss.cases.triples import counted
from refloss.kernels.elementwise.loop import Loop
from refloss.kernels.maps import exponentials
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.accurate import exp_alone, log_accurate
from refloss.numerics.bits import fma
from refloss.numerics.exponential import OVERFLOW, UNDERFLOW, exp_pair, log_finely, log_pair, scale
from refloss.numerics.pairs import add, negate, normalised, pair, product, quotient, two_product, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Elementwise, Magnitudes, Parameter, values
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

# log(2π)/2 as a pair.
_HALF_LOG_2_PI = (0.9189385332046728, -3.8782941580672414e-17)
# What is below this share of its terms is computed again: an exponential has an error of 2^-55.
_LEFT = 0.125


@jit.scalar
def _stirling(t, log_t):
    """S = (t + 1/2)·log t − t + log(2π)/2 and S′, pairs."""
    inverse = 0.5 / t
    slope = add(log_t, (inverse, fma(-inverse, t, 0.5) / t))
    return add(add(normalised(product(two_sum(t, 0.5), log_t)), pair(-t)), _HALF_LOG_2_PI), slope


@jit.scalar
def _with_stirling(value, for_target, t, log_t, full):
    """Value and the derivative in the target with Stirling's term, where there is one."""
    term, slope = _stirling(t, log_t)
    # The term of a target that is undefined is so, and that of an infinite one, inf − inf.
    term, slope = (term, slope) if t < np.inf else (pair(np.nan), pair(np.nan))
    some = full and not t <= 1.0
    for_target = add(for_target, slope) if some else for_target
    # Of a term that is left out torch differentiates the logarithms.
    return add(value, term) if some else value, pair(np.nan) if full and t <= 0.0 else for_target


@jit.scalar
def _of_exponential(x, t, power, log_t, full):
    """Value and derivatives from e^x and log t."""
    value, for_target = _with_stirling(add(power, two_product(-t, x)), pair(-x), t, log_t, full)
    return value, add(power, pair(-t)), for_target


@jit.scalar
def _loss(x, t, factor, parameters):
    bounded = OVERFLOW if x > OVERFLOW else (UNDERFLOW if x < UNDERFLOW else x)
    leading, tail, n = exp_pair(bounded, 0.0)
    return _of_exponential(x, t, (scale(leading, n), scale(tail, n)), log_finely(t), parameters[0] != 0.0)


@jit.scalar
def _is_close(x, t, factor, parameters, value, for_input, for_target):
    terms = abs(t * x) + parameters[0] * abs(t)
    return (
        abs(value) < _LEFT * terms,
        abs(for_input) < _LEFT * abs(t),
        parameters[0] != 0.0 and t > 1.0 and abs(for_target) < _LEFT * abs(x),
    )


@jit.helper
def _accurate(x, t, factor, parameters):
    full = parameters[0] != 0.0
    # Before the exponential: while it is computed, less has to be kept.
    log_t = log_accurate(t, 0.0) if full and t > 1.0 and t < np.inf else pair(0.0)
    power = exp_alone(max(x, UNDERFLOW), 0.0) if x < OVERFLOW else pair(x)
    return _of_exponential(x, t, power, log_t, full)


@jit.scalar
def _rate(x, parameters):
    """x + ε as a pair."""
    rate = two_sum(x, parameters[1])
    return rate[0], rate[1] if abs(rate[0]) < np.inf else 0.0


@jit.scalar
def _of_logarithm(x, t, rate, log_rate, log_t, full):
    """Value and derivatives from log(x + ε) and log t."""
    ordinary = rate[0] > 0.0 and rate[0] < np.inf
    logarithm = log_rate[0] if ordinary else (-np.inf if rate[0] == 0.0 else (rate[0] if rate[0] > 0.0 else np.nan))
    log_rate = (logarithm, log_rate[1] if ordinary else 0.0)
    value = add(pair(x), normalised(product(pair(-t), log_rate)))
    value, for_target = _with_stirling(value, negate(log_rate), t, log_t, full)
    return value, _slope_of_rate(x, t, rate), for_target


@jit.scalar
def _slope_of_rate(x, t, rate):
    """1 − t/(x + ε)."""
    high, low = two_sum(rate[0], -t)
    slope = normalised(quotient((high, low + rate[1]), rate))
    plain = 1.0 - t / rate[0]
    finite = abs(plain) < np.inf and abs(rate[0]) < np.inf
    return slope[0] if finite else plain, slope[1] if finite else 0.0


@jit.scalar
def _loss_of_rate(x, t, factor, parameters):
    rate = _rate(x, parameters)
    return _of_logarithm(x, t, rate, log_pair(rate[0], rate[1]), log_finely(t), parameters[0] != 0.0)


@jit.scalar
def _is_close_of_rate(x, t, factor, parameters, value, for_input, for_target):
    return (
        abs(value) < _LEFT * (abs(x) + parameters[0] * abs(t)),
        False,
        parameters[0] != 0.0 and t > 1.0 and abs(for_target) < _LEFT * abs(log_pair(t, 0.0)[0]),
    )


@jit.helper
def _accurate_of_rate(x, t, factor, parameters):
    full, rate = parameters[0] != 0.0, _rate(x, parameters)
    log_rate = log_accurate(rate[0], rate[1]) if rate[0] > 0.0 and rate[0] < np.inf else pair(0.0)
    log_t = log_accurate(t, 0.0) if full and t > 1.0 and t < np.inf else pair(0.0)
    return _of_logarithm(x, t, rate, log_rate, log_t, full)


LOOP = Loop("poisson_nll", _loss, _is_close, _accurate, signed=True)
LOOP_OF_RATE = Loop("poisson_nll_of_rate", _loss_of_rate, _is_close_of_rate, _accurate_of_rate, signed=True)


def _magnitudes(x, t, case, unit):
    some = (t > 1) & bool(case.parameters.get("full", False))
    log_t = np.log(np.where(some, t, 1.0))
    term = np.where(some, t * log_t + t + (np.log(2 * np.pi) + log_t) / 2, 0.0)
    # The derivative of t·log t − t has a product with t that is divided by t, less 1.
    slope = np.where(some, log_t + 2 + 0.5 / np.where(some, t, 1.0), 0.0)
    if case.parameters.get("log_input", True):
        power = np.exp(x)
        return Magnitudes(power + np.abs(t * x) + term, power + np.abs(t), np.abs(x) + slope, np.where(some, 1 / t, 0))
    rate = x + case.parameters.get("eps", 1e-8)
    # x + ε is rounded, which is an absolute error of its logarithm.
    logarithm = np.abs(np.log(rate)) + 1
    return Magnitudes(
        np.abs(x) + np.abs(t) * logarithm + term, 1 + np.abs(t / rate), logarithm + slope, np.where(some, 1 / t, 0)
    )


def _draw(draws):
    shape = draws.elements()
    parameters = draws.parameters(_PARAMETERS)
    x = draws.logits(*shape)
    of_logs = parameters.get("log_input", True)
    x = x.astype(np.float64)
    x = draws.cast(np.clip(x, -6.0, 8.0) if of_logs else np.abs(x) + 0.125)
    if not draws.limits.exact and draws.maybe():
        t = draws.near(np.minimum(exponentials(x) if of_logs else x, 4096.0))
    else:
        t = draws.cast(np.round(8.0 * draws.uniform(*shape)))
    return Drawn({"input": x, "target": t}, parameters, shape)


_PARAMETERS = REDUCTION | {
    "log_input": Parameter(bool, (True, False)),
    "full": Parameter(bool, (False, True)),
    "eps": Parameter(float, (1e-8, 0.25)),
}


@loss(
    Elementwise(
        arguments={"input": values(), "target": values()},
        parameters=_PARAMETERS,
        order=73,
        follows="torch.nn.functional.poisson_nll_loss",
        positive=False,
        cases=counted(33),
        draw=_draw,
        magnitudes=_magnitudes,
    )
)
def poisson_nll(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    *,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Poisson negative log-likelihood, as torch.nn.functional.poisson_nll_loss: target holds counts.

    ℓ_i = e^x_i − t_i·x_i, or x_i − t_i·log(x_i + eps) without log_input; if full, t_i·log t_i − t_i + log(2π·t_i)/2
    more where t_i > 1. "mean" divides the sum by the number of elements. With c = grad_output over that: ∂/∂x_i =
    c·(e^x_i − t_i), or c·(1 − t_i/(x_i + eps)); ∂/∂t_i = −c·x_i, or −c·log(x_i + eps), and c·(log t_i + 1/2t_i) more
    where t_i > 1, if full, and NaN where t_i ≤ 0. Held constant: nothing.

    Args:
        input, target: arrays of one shape, any float dtype and layout; torch broadcasts where shapes differ.
            Targets may be of an integer dtype; they have no gradient then.
        log_input: input holds logarithms of rates, not rates.
        full: add Stirling's approximation of log t!.
        eps: what is added to a rate before its logarithm is taken, a number; float32 torch rounds the sum.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in nats. grads: "input" and "target".
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        A rate of −eps: the loss is inf, its derivative −inf; NaN for t = 0. Below, the loss is NaN. A target of 0 or
        less has no Stirling term, but with full ∂/∂t is NaN there, as torch has it. No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit. TypeError: a dtype that does not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, (t, is_float) = arrays.float_array(input, "input"), arrays.target_array(target, "target")
    parameters = float(arrays.flag(full, "full")), arrays.number(eps, "eps", finite=True)
    return elementwise.loss_of_elements(
        LOOP if arrays.flag(log_input, "log_input") else LOOP_OF_RATE,
        {"input": x, "target": t},
        Options(grad_output, grad, grad_dtype, out, backend),
        parameters=parameters,
        target_has_gradient=is_float,
        divisor=x.size,
        reduction=reduction,
    )
