"""Binary cross-entropy of probabilities.

    ℓ = −t·max(log p, −100) − (1 − t)·max(log(1 − p), −100)

torch clamps the logarithms in the value, and takes other derivatives than that value has: they are followed here.

    ∂ℓ/∂p = (p − t) / max(p·(1 − p), 1e-12),    ∂ℓ/∂t = log(1 − p) − log p, not clamped

Near p = 1/2 both logarithms are nearly equal: ∂ℓ/∂t is computed again in pairs.

Torch counterpart: torch.nn.functional.binary_cross_entropy.
"""

from __future__ import annotations

import numpy as np

from refloss import arrays, jit
from refloss.cases.elements import elements, hard_targets
from refloss.kernels.elementwise.loop import Loop
from refloss.loss import loss
from refloss.losses.parts import elementwise
from refloss.numerics.accurate import CLOSE, log_accurate
from refloss.numerics.exponential import log_pair
from refloss.numerics.pairs import add, is_below, negate, pair, product, quotient, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import REDUCTION, Elementwise, Magnitudes, probabilities, weight
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients, Reduction

# torch's bounds: of a logarithm from below, of p·(1 − p) where it divides.
_LEAST_LOG, _LEAST_SPREAD = -100.0, 1e-12


@jit.scalar
def _of_logs(x, t, log_p, log_rest):
    """Value and derivatives from both logarithms."""
    rest = two_sum(1.0, -x)
    spread = product(rest, pair(x))
    for_input = quotient(two_sum(x, -t), pair(_LEAST_SPREAD) if is_below(spread, _LEAST_SPREAD) else spread)
    for_target = add(log_rest, negate(log_p))
    for_positive = product(pair(-t), log_p if log_p[0] > _LEAST_LOG else pair(_LEAST_LOG))
    for_negative = product(two_sum(t, -1.0), log_rest if log_rest[0] > _LEAST_LOG else pair(_LEAST_LOG))
    high, low = two_sum(for_positive[0], for_negative[0])
    return (high, low + (for_positive[1] + for_negative[1])), for_input, for_target


@jit.scalar
def _log(high, low):
    """The logarithm of a pair in [0, 1], as a pair."""
    log_high, log_low = log_pair(high, low)
    return (log_high if high > 0.0 else (-np.inf if high == 0.0 else high)), (log_low if high > 0.0 else 0.0)


@jit.scalar
def _loss(x, t, factor, parameters):
    rest = two_sum(1.0, -x)
    return _of_logs(x, t, _log(x, 0.0), _log(rest[0], rest[1]))


@jit.scalar
def _is_close(x, t, factor, parameters, value, for_input, for_target):
    # Both logarithms are log 2 where they are equal.
    return False, False, abs(for_target) < CLOSE


@jit.helper
def _accurate(x, t, factor, parameters):
    rest = two_sum(1.0, -x)
    return _of_logs(x, t, log_accurate(x, 0.0), log_accurate(rest[0], rest[1]))


LOOP = Loop("bce", _loss, _is_close, _accurate)


def _magnitudes(p, t, case, unit):
    # log(1 − p) is not log1p everywhere: 1 − p is off by u, which is an absolute error of its logarithm.
    positive, negative = np.abs(np.log(p)), np.abs(np.log1p(-p))
    value = np.abs(t) * np.minimum(positive, 100.0) + np.abs(1 - t) * np.minimum(negative, 100.0)
    return Magnitudes(value, np.abs(p - t) / np.maximum(p * (1 - p), 1e-12), positive + negative + 1)


@loss(
    Elementwise(
        arguments={
            "input": probabilities(on_gpu=False),
            "target": probabilities(on_gpu=False),
            "weight": weight(broadcast=True),
        },
        parameters=REDUCTION,
        order=50,
        identities=("mirrored", "linear in the target", "logarithm of the input"),
        follows="torch.nn.functional.binary_cross_entropy",
        cases=elements(14, hard_targets, probabilities=("input", "target")),
        magnitudes=_magnitudes,
    )
)
def bce(
    input: ArrayLike,  # noqa: A002
    target: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Binary cross-entropy of probabilities, as torch.nn.functional.binary_cross_entropy.

    ℓ_i = −w_i·(t_i·max(log p_i, −100) + (1 − t_i)·max(log(1 − p_i), −100)); "mean" divides the sum by the number of
    elements. With c = grad_output over that: ∂/∂p_i = c·w_i·(p_i − t_i)/max(p_i(1 − p_i), 1e-12), ∂/∂t_i =
    c·w_i·(log(1 − p_i) − log p_i). At p = 0 and 1 these are not the derivatives of the clamped value: they are
    torch's. Held constant: weight.

    Args:
        input, target: arrays of one shape, any float dtype and layout, with values in [0, 1].
        weight: broadcasts to the shape of input.
        reduction: "mean", "sum" or "none".
        grad: True, False, or the names of the inputs whose gradients to compute.
        grad_output, grad_dtype, out, backend: as in refloss.cross_entropy; out is for input's gradient.

    Returns:
        loss in nats. grads: "input" and "target".
        intermediates: "losses" of the elements, computed from the inputs when asked for.

    Edges:
        A hard miss costs 100, with a derivative of ±10^12. No elements: "mean" is NaN.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit; a probability outside [0, 1]. TypeError: a dtype
        that does
            not.
    """
    arrays.choice(reduction, "reduction", elementwise.REDUCTIONS)
    x, t = arrays.float_array(input, "input"), arrays.float_array(target, "target")
    arrays.check_range(x, 0.0, 1.0, "input")
    arrays.check_range(t, 0.0, 1.0, "target")
    options = Options(grad_output, grad, grad_dtype, out, backend)
    return elementwise.loss_of_elements(
        LOOP,
        {"input": x, "target": t},
        options,
        weight=elementwise.broadcast(weight, x.shape, "weight"),
        divisor=x.size,
        reduction=reduction,
    )
