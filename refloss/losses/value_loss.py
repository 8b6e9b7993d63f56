"""Value loss: the clipped squared error of a critic, of each token.

With the value v, its return R, the value v₀ of before the update, and c,

    v_c = v₀ + clamp(v − v₀, −c, c),    ℓ = ½·max((v − R)², (v_c − R)²),    without c: ℓ = ½·(v − R)²
    ∂ℓ/∂v = v − R where (v − R)² is the larger one, or |v − v₀| ≤ c, where v_c is v; else 0

Where both squares are equal beyond the clip, at v_c − R = R − v, torch's maximum gives each half: ½·(v − R).

Numerics. Which square is larger, and whether |v − v₀| is above c, is decided exactly: v − v₀ is a pair without error,
and (v − R)² − (v_c − R)² = (v − v_c)·(v + v_c − 2R), where the second factor is an exact sum of four float64. v_c − R
is one of three, and so is known to a pair's last digit whatever cancels.

Source: Schulman's baselines (ppo2); verl's compute_value_loss, OpenRLHF's ValueLoss and torchtune's RLHF losses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss import arrays, jit
from refloss.cases import policies as cases
from refloss.error_model import tokens as error_model
from refloss.kernels.tokens.loop import Token, TokenLoop, difference
from refloss.loss import loss
from refloss.losses.parts.aggregation import AGGREGATION_PARAMETERS, AggregationName, Sequences, aggregation_of, divisor
from refloss.losses.parts.tokens import beside, loss_of_tokens, token_array
from refloss.numerics import far
from refloss.numerics.pairs import fast_two_sum, is_above, two_sum
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Argument, Parameter, Specification
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients

if TYPE_CHECKING:
    from refloss.cases.draws import Drawn, Draws
    from refloss.cases.source import Case


@jit.scalar
def _sum_of_three(a, b, c):
    """Their sum as a pair, to its last digit."""
    high, low = two_sum(a, b)
    high, middle = two_sum(high, c)
    middle, lowest = two_sum(low, middle)
    high, middle = two_sum(high, middle)
    high, middle = fast_two_sum(high, middle + lowest)
    return high, middle if abs(high) < np.inf else 0.0


@jit.scalar
def _sign_of_four(a, b, c, d):
    """The sign of an exact sum, as a float64 that has it: parts that do not overlap, the largest first."""
    top, rest = two_sum(a, b)
    part, lowest = two_sum(c, rest)
    top, middle = two_sum(part, top)
    part, end = two_sum(d, lowest)
    part, third = two_sum(part, middle)
    top, second = two_sum(part, top)
    if top != 0.0 or top != top:
        return top
    if second != 0.0:
        return second
    return third if third != 0.0 else end


@jit.scalar
def _half_square(error):
    """Half the square of a pair."""
    number = far.from_pair(error)
    high, low, exponent = far.multiply(number, number)
    return 0.5 * high, 0.5 * low, exponent


@jit.scalar
def _plain(v, target, old, clip):
    """The loss and its slope where a number is not finite, by the float rules and as torch's autograd has it."""
    error, moved = v - target, v - old
    if clip == np.inf:
        return 0.5 * error * error, error
    held = -clip if moved < -clip else (clip if moved > clip else moved)
    clipped_error = (old + held) - target
    first, second = error * error, clipped_error * clipped_error
    inside = abs(moved) <= clip
    value = 0.5 * (first if first >= second else second)
    value = value if first == first and second == second else np.nan
    share = 0.0 if first < second else (0.5 if first == second else 1.0)
    other = 0.0 if first > second else (0.5 if first == second else 1.0)
    slope = (share * error if share > 0.0 else 0.0) + (other * clipped_error if other > 0.0 and inside else 0.0)
    return value, slope


@jit.scalar
def _of_token(numbers, _mean, parameters):
    """Its loss, and its slope in the value."""
    v, target, old, clip = numbers[0], numbers[1], numbers[2], parameters[0]
    none = (0.0, 0.0, 0.0)
    if not abs((v - target) + (v - old)) < np.inf:
        value, slope = _plain(v, target, old, clip)
        return Token(far.number(value), far.number(slope), far.ZERO, far.ZERO, none)
    error, moved = difference(v, target), difference(v, old)
    loss, slope = _half_square(error), far.from_pair(error)
    above = is_above(moved, clip)
    below = is_above((-moved[0], -moved[1]), clip)
    if above or below:
        bound = clip if above else -clip
        # Of v − v_c the sign is known.
        gap = _sign_of_four(v, old, bound, -2.0 * target)
        gap = gap if above else -gap
        if gap < 0.0:
            loss, slope = _half_square(_sum_of_three(old, bound, -target)), far.ZERO
        elif gap == 0.0:
            slope = far.from_pair((0.5 * error[0], 0.5 * error[1]))
    return Token(loss, slope, far.ZERO, far.ZERO, none)


LOOP = TokenLoop("value_loss", _of_token, inputs=3)
_PARAMETERS = {"clip": Parameter(float, (0.25, 0.5, 0.2))} | AGGREGATION_PARAMETERS


def _draw(draws: Draws) -> Drawn:
    return cases.draw_value_loss(draws, draws.parameters(_PARAMETERS))


def _mistakes(case: Case) -> dict[str, dict[str, np.ndarray]]:
    if "clip" not in case.parameters:
        return {}
    return {"values themselves are clipped": {"old_values": np.zeros_like(case.inputs["old_values"])}}


@loss(
    Specification(
        arguments={
            "values": Argument("values", differentiable=True, on_gpu=True, shape="B T"),
            "returns": Argument("values", shape="B T"),
            "old_values": Argument("values", optional=True, shape="B T"),
            "mask": Argument("mask", optional=True, shape="B T"),
        },
        parameters=_PARAMETERS,
        mean="tokens",
        order=91,
        follows="verl's compute_value_loss",
        axes=2,
        divisor=divisor,
        padded=(1,),
        cases=cases.value_loss,
        draw=_draw,
        bounds=error_model.value_loss,
        mistakes=_mistakes,
        mistaken_parameters=cases.wrong_aggregations,
        intermediates=("losses",),
    )
)
def value_loss(
    values: ArrayLike,
    returns: ArrayLike,
    *,
    old_values: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    clip: float | None = None,
    aggregation: AggregationName = "token-mean",
    num_items: float | None = None,
    sequences: Sequences = "all",
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """Half the squared error of a critic's values, clipped around the values of before the update.

    ℓ = ½·max((v − R)², (v_c − R)²) with v_c = v₀ + clamp(v − v₀, −clip, clip); without clip ½·(v − R)². With c =
    grad_output over what the aggregation divides by, ∂/∂v = c·(v − R) where (v − R)² is the larger square or v is
    within the clip, else 0. Held constant: returns, old_values, mask.

    Args:
        values: v [B, T]; any float dtype and layout.
        returns: R [B, T].
        old_values: v₀ [B, T]; read only where there is a clip.
        mask: [B, T], which tokens count, bool or 0 and 1; all of them without one. Others have loss and gradient 0,
            whatever they hold.
        clip: at least 0; None for none.
        aggregation: "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "sum" or "none", over tokens that count.
        num_items: replaces the number of tokens, or of sequences, that a mean divides by, and divides a "sum".
        sequences: which of them a mean over sequences counts: "all" (TRL), or "non-empty" ones (verl).
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss ≥ 0, [B, T] for "none". grads: "values". intermediates: "losses" [B, T].

    Edges:
        |v − v₀| = clip: the slope passes. Equal squares beyond the clip: half of it passes. No token, or sequence,
        that counts: a mean over them is NaN, and gradients are 0. NaN and infinities come out as torch has them.

    Raises:
        ValueError: a shape, a clip without old_values, an option or a buffer that does not fit. TypeError: a dtype
        that does not.
    """
    x = token_array(values, "values")
    inputs = {"values": x, "returns": beside(returns, "returns", "values", x.shape)}
    limit = np.inf if clip is None else arrays.number(clip, "clip", finite=True, low=0.0)
    if clip is not None and old_values is None:
        raise ValueError("old_values is None; expected those that values are clipped around")
    old = inputs["returns"] if old_values is None else beside(old_values, "old_values", "values", x.shape)
    inputs["old_values"] = old if clip is not None else inputs["returns"]
    counts = arrays.counted(mask, x.shape, "one for each of values")
    result, _ = loss_of_tokens(
        LOOP,
        inputs,
        Options(grad_output, grad, grad_dtype, out, backend),
        aggregation_of(aggregation, num_items, sequences, counts),
        parameters=(limit,),
    )
    return result
