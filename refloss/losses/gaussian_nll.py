"""Gaussian negative log-likelihood of a target, with a variance that is predicted.

With d = x − t and v = max(var, ε),

    ℓ = (log v + d²/v + [log 2π])/2,    ∂ℓ/∂x = d/v, ∂ℓ/∂t = −d/v,    ∂ℓ/∂v = (1/v − d²/v²)/2 = (1 − d²/v)/2v

The clamp has no part in the derivative: a variance below ε has that of ε, as torch has it. What several elements share,
a variance, a target or an input, has the sum of their derivatives, which is exact, and rounded once.

log v and d²/v have both signs: where they nearly cancel, the value is computed again in pairs, or where these have too
few digits left, from d²/v as three float64. Near d² = v the derivative in v is (v − d²)/2v², whose difference is a sum
of four float64 without error.

Nix, Weigend, "Estimating the mean and variance of the target probability distribution", 1994.
Torch counterpart: torch.nn.functional.gaussian_nll_loss.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.draws import Drawn
from refloss.cases.triples import likely, spread
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.accurate import CLOSE, log_accurate
from refloss.numerics.bits import fma
from refloss.numerics.exponential import log_finely
from refloss.numerics.pairs import add, negate, normalised, pair, product, quotient, two_product, two_sum
from refloss.numerics.triples import log_beyond
from refloss.options import Options
from refloss.result import LossResult
from refloss.roundoff import real
from refloss.specification import REDUCTION, Argument, Elementwise, Magnitudes, Parameter, values
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

# log 2π: the float64 nearest to it, the one nearest to what that leaves, and once more.
LOG_2_PI = (1.8378770664093456, -7.756588316134483e-17, -2.647943193699614e-33)
_NOTHING = (0.0, 0.0, 0.0)
# Digits for a value within an ulp are left above this share of the logarithm, which has an error of 2^-62.
_LEFT = 2.0**-8
# Below this share pairs leave too few digits as well; v is then within 2^-30 of e^−(d²/v + log 2π).
_NEXT = 2.0**-40


@jit.scalar
def _clamped(var, parameters):
    """The variance, which stays undefined where it is."""
    return parameters[0] if var < parameters[0] else var


@jit.scalar
def _half_sum(log_v, square, constant):
    """(log v + d²/v + log 2π)/2 of pairs; by the float rules where that is not finite."""
    high, first = two_sum(log_v[0], square[0])
    high, second = two_sum(high, constant[0])
    low = (first + second) + ((log_v[1] + square[1]) + constant[1])
    plain = (log_v[0] + square[0]) + constant[0]
    finite = abs(plain) < np.inf
    return 0.5 * (high if finite else plain), 0.5 * (low if finite else 0.0)


@jit.scalar
def _squared(difference, v):
    """d/v, and d²/v by way of it: neither is too large where d² is."""
    slope = normalised(quotient(difference, pair(v)))
    return slope, normalised(product(slope, difference))


@jit.scalar
def _loss(x, t, var, parameters):
    v = _clamped(var, parameters)
    slope, square = _squared(two_sum(x, -t), v)
    ordinary = v > 0.0 and v < np.inf
    log_v, log_low = log_finely(v)
    log_v = log_v if ordinary else (-np.inf if v == 0.0 else v)
    value = _half_sum((log_v, log_low if ordinary else 0.0), square, (parameters[1], parameters[2]))
    return value, slope, negate(slope)


@jit.scalar
def _for_shared(x, t, var, parameters):
    """The derivative in x, as _for_var has that in the variance."""
    slope, _ = _squared(two_sum(x, -t), _clamped(var, parameters))
    return slope, slope, pair(slope[1])


@jit.scalar
def _is_close(x, t, var, parameters, value, for_input, for_target):
    return abs(value) < _LEFT * (abs(for_input * (x - t)) + parameters[1]), False, False


@jit.helper
def _value_beyond(difference, v, parameters):
    """(log v + d²/v + log 2π)/2 where it is almost 0: what is added to log v, as a float64 and a pair of the rest."""
    top, top_low = two_product(difference[0], difference[0])
    middle = two_product(2.0 * difference[0], difference[1])
    high = top / v
    below = add(add(two_sum(fma(-high, v, top), top_low), middle), pair(difference[1] * difference[1]))
    rest = normalised(quotient(below, pair(v)))
    whole, whole_low = two_sum(high, parameters[1])
    rest = add(add(rest, pair(whole_low)), two_sum(parameters[2], parameters[3]))
    whole, whole_low = two_sum(whole, rest[0])
    left = add(log_beyond(v, -whole), add(pair(whole_low), pair(rest[1])))
    return 0.5 * left[0], 0.5 * left[1]


@jit.helper
def _accurate(x, t, var, parameters):
    """The value; the derivatives are never asked for."""
    difference, v = two_sum(x, -t), _clamped(var, parameters)
    if not (v > 0.0 and v < np.inf):
        return pair(np.nan), pair(0.0), pair(0.0)
    _, square = _squared(difference, v)
    constant = parameters[1], parameters[2]
    if abs(_half_sum(log_finely(v), square, constant)[0]) < _NEXT * (square[0] + parameters[1]):
        value = _value_beyond(difference, v, parameters)
    else:
        value = normalised(_half_sum(log_accurate(v, 0.0), square, constant))
    return value, pair(0.0), pair(0.0)


@jit.scalar
def _for_var(x, t, var, parameters):
    """The derivative in the variance: as a value, as that of the first argument, and its low part alone."""
    v = _clamped(var, parameters)
    _, square = _squared(two_sum(x, -t), v)
    high, low = two_sum(1.0, -square[0])
    plain = 1.0 - square[0]
    finite = abs(plain) < np.inf
    slope = normalised(quotient((high if finite else plain, low - square[1] if finite else 0.0), pair(2.0 * v)))
    slope = slope if v > 0.0 else pair(np.nan)
    return slope, slope, pair(slope[1])


@jit.scalar
def _is_close_for_var(x, t, var, parameters, value, for_input, for_target):
    close = abs(for_input) * (2.0 * _clamped(var, parameters)) < CLOSE
    return close, close, close


@jit.helper
def _accurate_for_var(x, t, var, parameters):
    difference, v = two_sum(x, -t), _clamped(var, parameters)
    top, top_low = two_product(difference[0], difference[0])
    middle, middle_low = two_product(2.0 * difference[0], difference[1])
    high, first = two_sum(v, -top)
    high, second = two_sum(high, -top_low)
    high, third = two_sum(high, -middle)
    low = ((first + second) + third) - (middle_low + difference[1] * difference[1])
    left = normalised((high, low))
    slope = normalised(quotient(normalised(quotient(left, pair(v))), pair(2.0 * v)))
    return slope, slope, pair(slope[1])


LOOP = Loop("gaussian_nll", _loss, _is_close, _accurate, signed=True)
LOOP_FOR_SHARED = Loop("gaussian_nll_for_shared", _for_shared)
LOOP_FOR_VAR = Loop("gaussian_nll_for_var", _for_var, _is_close_for_var, _accurate_for_var)


def _magnitudes(x, t, case, unit):
    v = np.maximum(real(case.inputs["var"]), case.parameters.get("eps", 1e-6))
    distance = np.abs(x - t)
    value = (np.abs(np.log(v)) + distance**2 / v + (LOG_2_PI[0] if case.parameters.get("full") else 0.0)) / 2
    return Magnitudes(value, distance / v, distance / v, third=(1 + distance**2 / v) / v)


def _draw(draws):
    shape = draws.elements()
    parameters = draws.parameters(_PARAMETERS)
    # Either of both may be the narrow one; variances fit input.
    own = [shape, shape]
    if shape and not draws.limits.exact:
        own[draws.one_of(1, 0)] = draws.one_of(shape, (*shape[:-1], 1), (1, *shape[1:]), ())
    x = draws.logits(*own[0])
    near = own == [shape, shape] and not draws.limits.exact and draws.maybe()
    t = draws.near(x) if near else draws.logits(*own[1])
    narrow = x.shape
    if narrow and not draws.limits.exact:
        narrow = draws.one_of(narrow, (*narrow[:-1], 1), narrow[:-1], (1, *narrow[1:]))
    var = spread(draws.uniform(*narrow), exact=draws.limits.exact)
    # Some variances are the squared distance, where the derivative in them is 0.
    if narrow == shape and near and draws.maybe():
        distance = x.astype(np.float64) - t.astype(np.float64)
        var = np.clip(distance * distance, 2.0**-20, 2.0**20)
    return Drawn({"input": x, "target": t, "var": draws.cast(var)}, parameters, shape)


_PARAMETERS = REDUCTION | {"full": Parameter(bool, (False, True)), "eps": Parameter(float, (1e-6, 0.25, 2.0))}


@loss(
    Elementwise(
        arguments={
            "input": values(broadcast=True),
            "target": values(broadcast=True),
            "var": Argument("values", differentiable=True, broadcast=True),
        },
        parameters=_PARAMETERS,
        order=72,
        identities=("a distance",),
        follows="torch.nn.functional.gaussian_nll_loss",
        positive=False,
        cases=likely(32),
        draw=_draw,
        magnitudes=_magnitudes,
    )
)
def gaussian_nll(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    var: ArrayLike,
    *,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Gaussian negative log-likelihood, as torch.nn.functional.gaussian_nll_loss.

    With d_i = x_i − t_i and v_i = max(var_i, eps): ℓ_i = (log v_i + d_i²/v_i)/2, and log(2π)/2 more if full; "mean"
    divides the sum by the number of elements. With c = grad_output over that: ∂/∂x_i = c·d_i/v_i, ∂/∂t_i = −∂/∂x_i,
    ∂/∂var_i = c·(1/v_i − d_i²/v_i²)/2, below eps as well. Held constant: nothing; the clamp has no derivative.

    Args:
        input, target: arrays of any float dtype and layout, whose shapes broadcast to that of the elements.
        var: of input's shape, of that shape but for one axis of size 1, or without the last axis; a number, or an array
            without axes, is the variance of all elements. Not negative.
        full: add log(2π)/2 to each element.
        eps: the least variance, a number; float32 torch rounds it.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in nats. grads: "input", "target" and "var"; where one of them is broadcast, its gradient is the exact sum
        over the elements that share it, rounded once. intermediates: "losses" of the elements, computed from the inputs
        when asked for.

    Edges:
        A variance of 0 where eps is not above 0: the loss and ∂/∂var are NaN, as torch has them. No elements: "mean"
        is NaN.

    Raises:
        ValueError: a shape, a negative variance, an option or a buffer that does not fit. TypeError: a dtype that does
            not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, t = arrays.float_array(input, "input"), arrays.float_array(target, "target")
    is_number = isinstance(var, int | float)
    v = np.asarray(arrays.number(var, "var")) if is_number else arrays.float_array(var, "var")
    arrays.check_not_negative(v, "var")
    constant = LOG_2_PI if arrays.flag(full, "full") else _NOTHING
    return elementwise.loss_of_elements(
        LOOP,
        {"input": x, "target": t, "var": v},
        Options(grad_output, grad, grad_dtype, out, backend),
        parameters=(arrays.number(eps, "eps", finite=True), *constant),
        factor_loop=LOOP_FOR_VAR,
        shared_loop=LOOP_FOR_SHARED,
        reduction=reduction,
    )
