"""Policy losses of reinforcement learning, on log-probabilities of sampled tokens: PPO, GRPO, DAPO, GSPO, CISPO, SAPO.

With ℓp the log-probability of a token, ℓ₀ that of the policy which sampled it, A its advantage, w a weight, and

    r = e^(ℓp − ℓ₀) of the token, or s = e^(mean of ℓp − ℓ₀ over the tokens of its sequence that count),

    "clip"     −w·min(r·A, clip(r, 1 − ε_l, 1 + ε_h)·A);  with a dual clip c, where A < 0: −w·max(min(...), c·A)
    "cispo"    −w·sg(clip(r, 1 − ε_l, 1 + ε_h))·A·ℓp
    "sapo"     −w·(4/τ)·σ(τ·(r − 1))·A,    τ = τ₊ where A > 0, else τ₋

plus κ·KL, where KL is an estimate k1, k2 or k3 of parts/kl_estimates.py, or r times that. In d = log r,

    "clip":  ∂/∂d = −w·r·A where the minimum is r·A or r is within the clip, else 0
    "cispo": ∂/∂ℓp = −w·clip(r)·A, nothing through r
    "sapo":  ∂/∂d = −4·w·σ(τ·(r − 1))·(1 − σ(τ·(r − 1)))·r·A

and ∂d/∂ℓp is 1, or for s 1/n of each of the n tokens of the sequence that count: each gets the mean of all slopes in s.

At a kink the slope is that of torch's autograd of the formula as it is written: clamp passes it at both bounds, and a
minimum of two equal numbers gives each half. Within the clip both are r·A, so that all of it passes. r = c has half.

Numerics. ℓp − ℓ₀ is a pair without error, and its exponential one of 2^-101; both bounds are exact sums of 1 and a
float64. r is one of them only for r = 1: e^d of a rational d ≠ 0 is no rational number. So which is larger can be
decided: where pairs cannot tell, from log(1 + ε) − d in triples. Ratios and products are numbers with exponents
(numerics.far): nothing overflows that the result does not. The slopes of the policy and of KL may cancel; both are
known to pairs, and what both have of r is set apart.

Sources: Schulman et al., "Proximal Policy Optimization", 2017; Ye et al. (dual clip), 2019; Shao et al., "DeepSeekMath"
(GRPO), 2024; Yu et al., "DAPO", 2025; Zheng et al., "GSPO", 2025; MiniMax-M1 (CISPO), 2025; Gao et al., "SAPO", 2025.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from refloss import arrays, jit
from refloss.cases import policies as cases
from refloss.error_model import tokens as error_model
from refloss.kernels.tokens.loop import Token, TokenLoop, difference
from refloss.loss import loss
from refloss.losses.parts.aggregation import AGGREGATION_PARAMETERS, AggregationName, Sequences, aggregation_of, divisor
from refloss.losses.parts.kl_estimates import CODES, ESTIMATES, Estimate, estimate, slope_of_estimate, slope_of_product
from refloss.losses.parts.tokens import beside, loss_of_tokens, token_array
from refloss.numerics import far
from refloss.numerics.exact import as_pair, quotient
from refloss.numerics.pairs import add, divide, multiply, negate, pair, rounded
from refloss.numerics.triples import log_beyond
from refloss.options import Options
from refloss.result import LossResult
from refloss.specification import Argument, Parameter, Specification
from refloss.typing import ArrayLike, Backend, Cotangent, DTypeLike, Gradients

if TYPE_CHECKING:
    from refloss.cases.draws import Drawn, Draws

Objective = Literal["clip", "cispo", "sapo"]
Ratio = Literal["token", "sequence"]
OBJECTIVES, RATIOS = get_args(Objective), get_args(Ratio)
# Beside a number that is nearer than this to another one, the errors of pairs are large.
_UNDECIDED = 2.0**-90


class Policy(NamedTuple):
    """What tokens are given beside their numbers; all float64."""

    objective: float  # its place in OBJECTIVES
    of_sequences: float
    low: float
    low_rest: float
    high: float
    high_rest: float
    dual: float
    estimate: float  # a code of parts.kl_estimates, 0 for none
    kl_coef: float
    kl_ratio_weighted: float
    positive: float  # τ
    negative: float


class Term(NamedTuple):
    """The policy's term of a token: its value, its slopes in ℓp and in log r over r, and whether it is clipped."""

    value: tuple[float, float, int]
    direct: tuple[float, float, int]
    of_ratio: tuple[float, float, int]
    clipped: float


@jit.helper
def _beyond(d, ratio, bound):
    """A number with the sign of e^d − bound, for pairs d and bound; NaN for NaN."""
    if not abs(bound[0]) < np.inf:
        return -bound[0]
    apart = add(far.as_pair(ratio), negate(bound))
    if abs(apart[0]) > _UNDECIDED * abs(bound[0]) or d[0] == 0.0 or not abs(apart[0]) < np.inf:
        return apart[0]
    share = divide((bound[1], 0.0), (bound[0], 0.0))
    square = multiply(share, share)
    rest = add(share, (-0.5 * square[0], -0.5 * square[1]))
    return -add(log_beyond(bound[0], d[0]), add(rest, pair(-d[1])))[0]


@jit.helper
def _plain_clip(d, ratio, advantage, weight, policy):
    """That of numbers of which one is not finite, by the float rules and as torch's autograd has it."""
    above = _beyond(d, ratio, (policy.high, policy.high_rest)) > 0.0
    below = _beyond(d, ratio, (policy.low, policy.low_rest)) < 0.0
    r = rounded(far.as_pair(ratio))
    first, second = r * advantage, (policy.high if above else policy.low if below else r) * advantage
    gained = second if first > second or second != second else first
    upstream = -weight
    if advantage < 0.0 and policy.dual < np.inf:
        least = policy.dual * advantage
        upstream *= 0.5 if gained == least else 1.0
        if gained < least:
            gained, upstream = least, 0.0
    half = 0.5 * upstream if first == second else upstream
    slope = (0.0 if first > second else half) * advantage
    slope += 0.0 if above or below else (0.0 if first < second else half) * advantage
    clipped = (advantage > 0.0 and above) or (advantage < 0.0 and below)
    return Term(far.number(-weight * gained), far.ZERO, far.number(slope), 1.0 if clipped else 0.0)


@jit.helper
def _clip(d, ratio, advantage, factor, policy):
    """−min(r·A, clip(r)·A), and its dual clip."""
    low, high = (policy.low, policy.low_rest), (policy.high, policy.high_rest)
    held, share, clipped = ratio, 1.0, 0.0
    if advantage > 0.0:
        if _beyond(d, ratio, high) > 0.0:
            held, share, clipped = far.from_pair(high), 0.0, 1.0
    elif advantage < 0.0:
        if _beyond(d, ratio, low) < 0.0:
            held, share, clipped = far.from_pair(low), 0.0, 1.0
        above = _beyond(d, ratio, pair(policy.dual))
        is_low = clipped > 0.0 and add(low, pair(-policy.dual))[0] >= 0.0
        if above > 0.0 or is_low:
            held, share = far.number(policy.dual), 0.0
        elif above == 0.0 and share > 0.0:
            share = 0.5
    elif advantage == 0.0:
        return Term(far.ZERO, far.ZERO, far.ZERO, 0.0)
    slope = far.multiply(far.number(share), factor)
    return Term(far.multiply(held, factor), far.ZERO, slope, clipped)


@jit.helper
def _cispo(d, ratio, x, factor, policy):
    """−sg(clip(r))·A·ℓp."""
    low, high = (policy.low, policy.low_rest), (policy.high, policy.high_rest)
    held, clipped = ratio, 0.0
    if _beyond(d, ratio, high) > 0.0:
        held, clipped = far.from_pair(high), 1.0
    elif _beyond(d, ratio, low) < 0.0:
        held, clipped = far.from_pair(low), 1.0
    slope = far.multiply(held, factor)
    return Term(far.multiply(slope, far.number(x)), slope, far.ZERO, clipped)


@jit.helper
def _sapo(ratio, advantage, factor, policy):
    """−(4/τ)·σ(τ·(r − 1))·A."""
    temperature = policy.positive if advantage > 0.0 else policy.negative
    z = multiply(pair(temperature), add(far.as_pair(ratio), pair(-1.0)))
    sign = 1.0 if z[0] < 0.0 else -1.0
    term = far.exponential(sign * z[0], sign * z[1])
    whole = far.add(far.ONE, term)
    larger, smaller = far.divide(far.ONE, whole), far.divide(term, whole)
    own, other = (larger, smaller) if z[0] >= 0.0 else (smaller, larger)
    value = far.multiply(far.multiply(own, factor), far.from_pair(divide(pair(4.0), pair(temperature))))
    if z[0] == np.inf:
        return Term(value, far.ZERO, far.ZERO, 0.0)
    slope = far.multiply(far.multiply(far.multiply(own, other), factor), (4.0, 0.0, 0))
    return Term(value, far.ZERO, slope, 0.0)


@jit.helper
def _term_of(d, ratio, numbers, policy):
    """That of the objective."""
    x, advantage, weight = numbers[0], numbers[2], numbers[4]
    factor = far.negate(far.multiply(far.number(advantage), far.number(weight)))
    if policy.objective == 0.0:
        if not (abs(d[0]) < np.inf and abs(advantage) < np.inf and abs(weight) < np.inf):
            return _plain_clip(d, ratio, advantage, weight, policy)
        return _clip(d, ratio, advantage, factor, policy)
    if policy.objective == 1.0:
        return _cispo(d, ratio, x, factor, policy)
    return _sapo(ratio, advantage, factor, policy)


@jit.helper
def _by_ratio(slope, ratio, d):
    """A slope over the ratio times it; nothing stays nothing where the ratio is large and d is finite."""
    return far.ZERO if slope[0] == 0.0 and d[0] < np.inf else far.multiply(slope, ratio)


@jit.helper
def _of_token(numbers, mean, policy):
    """A token's loss, its slopes in ℓp and in the mean of log-ratios, and its ratio, KL and whether it is clipped."""
    of_sequences = policy.of_sequences > 0.0
    d = mean if of_sequences else difference(numbers[0], numbers[1])
    ratio = far.exponential(d[0], d[1])
    term = _term_of(d, ratio, numbers, policy)
    value, first, of_ratio, kl = term.value, term.direct, term.of_ratio, far.ZERO
    through_ratio = policy.objective != 1.0
    if policy.estimate > 0.0:
        q, coefficient = difference(numbers[3], numbers[0]), far.number(policy.kl_coef)
        kl = estimate(q, policy.estimate)
        if policy.kl_coef != 0.0:
            direct = far.multiply(coefficient, slope_of_estimate(q, policy.estimate))
            if policy.kl_ratio_weighted > 0.0:
                # Slopes of infinite numbers are not cancelled on paper.
                is_apart = of_sequences or not (d[0] < np.inf and abs(q[0]) < np.inf)
                value = far.add(value, far.multiply(far.multiply(coefficient, kl), ratio))
                own = kl if is_apart else slope_of_product(q, policy.estimate)
                of_ratio = far.add(of_ratio, far.multiply(coefficient, own))
                direct = _by_ratio(direct, ratio, d) if is_apart else far.ZERO
                through_ratio = True
            else:
                value = far.add(value, far.multiply(coefficient, kl))
            first = far.add(first, direct)
    slope = _by_ratio(of_ratio, ratio, d) if through_ratio else far.ZERO
    notes = (rounded(far.as_pair(ratio)), rounded(far.as_pair(kl)), term.clipped)
    if of_sequences:
        return Token(value, first, far.ZERO, slope, notes)
    return Token(value, far.add(first, slope), far.ZERO, far.ZERO, notes)


LOOP = TokenLoop("policy_loss", _of_token, inputs=5, has_mean=True, notes=3)
_PARAMETERS = {
    "objective": Parameter(str, OBJECTIVES),
    "ratio": Parameter(str, RATIOS),
    "clip_low": Parameter(float, (0.1, 0.25, 0.0)),
    "clip_high": Parameter(float, (0.3, 0.28)),
    "dual_clip": Parameter(float, (3.0, 1.5)),
    "kl": Parameter(str, ESTIMATES),
    "kl_coef": Parameter(float, (0.25, 0.04)),
    "kl_ratio_weighted": Parameter(bool, (True, False)),
    **AGGREGATION_PARAMETERS,
    "sapo_temperature_pos": Parameter(float, (0.5, 2.0)),
    "sapo_temperature_neg": Parameter(float, (2.0, 1.0)),
}


def _draw(draws: Draws) -> Drawn:
    return cases.draw_policy_loss(draws, draws.parameters(_PARAMETERS))


def policy_of(
    objective: Any,
    ratio: Any,
    clip_low: Any,
    clip_high: Any,
    dual_clip: Any,
    kl: Any,
    kl_coef: Any,
    kl_ratio_weighted: Any,
    temperatures: tuple[Any, Any],
) -> Policy:
    """The options, checked, as tokens are given them."""
    arrays.choice(objective, "objective", OBJECTIVES)
    arrays.choice(ratio, "ratio", RATIOS)
    if kl is not None:
        arrays.choice(kl, "kl", ESTIMATES)
    coefficient = arrays.number(kl_coef, "kl_coef", finite=True)
    if kl is None and coefficient != 0.0:
        raise ValueError(f"kl_coef is {coefficient:g} and kl is None; expected one of {', '.join(ESTIMATES)}")
    if dual_clip is not None and objective != "clip":
        raise ValueError(f"dual_clip is given; expected None for objective {objective!r}")
    low, high = _bounds(clip_low, clip_high)
    return Policy(
        float(OBJECTIVES.index(objective)),
        float(ratio == "sequence"),
        *low,
        *high,
        np.inf if dual_clip is None else arrays.number(dual_clip, "dual_clip", finite=True, positive=True),
        0.0 if kl is None else CODES[kl],
        coefficient,
        float(arrays.flag(kl_ratio_weighted, "kl_ratio_weighted")),
        arrays.number(temperatures[0], "sapo_temperature_pos", finite=True, positive=True),
        arrays.number(temperatures[1], "sapo_temperature_neg", finite=True, positive=True),
    )


def _bounds(clip_low: Any, clip_high: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """1 − clip_low and 1 + clip_high, exact sums as pairs."""
    if clip_low is None and clip_high is None:
        raise ValueError("clip_low and clip_high are None; expected a number for one of them at least")
    low = None if clip_low is None else arrays.number(clip_low, "clip_low", finite=True)
    high = low if clip_high is None else arrays.number(clip_high, "clip_high", finite=True)
    if low is not None and high is not None and -low > high:
        raise ValueError(f"clip_low is {low:g} and clip_high {high:g}; expected 1 - clip_low <= 1 + clip_high")
    least = (-np.inf, 0.0) if low is None else as_pair(1 - Fraction(low))
    return least, as_pair(1 + Fraction(high or 0.0))


@loss(
    Specification(
        arguments={
            "log_probs": Argument("log-probabilities", differentiable=True, on_gpu=True, shape="B T"),
            "old_log_probs": Argument("log-probabilities", shape="B T"),
            "advantages": Argument("values", shape="B|B 1|B T"),
            "mask": Argument("mask", optional=True, shape="B T"),
            "ref_log_probs": Argument("log-probabilities", optional=True, shape="B T"),
            "weights": Argument("weight", optional=True, shape="B|B 1|B T"),
        },
        parameters=_PARAMETERS,
        mean="tokens",
        positive=False,
        order=90,
        follows="TRL's GRPOTrainer, verl's compute_policy_loss",
        axes=2,
        divisor=divisor,
        padded=(1,),
        cases=cases.policy_loss,
        draw=_draw,
        bounds=error_model.policy_loss,
        mistakes=cases.policy_mistakes,
        mistaken_parameters=cases.policy_parameters,
        intermediates=("losses", "ratio", "clip_fraction", "kl"),
    )
)
def policy_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    ref_log_probs: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    objective: Objective = "clip",
    ratio: Ratio = "token",
    clip_low: float | None = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    kl: Estimate | None = None,
    kl_coef: float = 0.0,
    kl_ratio_weighted: bool = False,
    aggregation: AggregationName = "token-mean",
    num_items: float | None = None,
    sequences: Sequences = "all",
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    grad_output: Cotangent = 1.0,
    grad: Gradients = True,
    grad_dtype: DTypeLike | None = None,
    out: np.ndarray | None = None,
    backend: Backend = "auto",
) -> LossResult:
    """A policy's loss on log-probabilities of sampled tokens, and its gradient.

    r = e^(log p − log p_old) of a token, or s of its sequence: e to the mean log-ratio of its tokens that count.

    objective "clip": ℓ = −w·min(r·A, clip(r, 1 − clip_low, 1 + clip_high)·A), for A < 0 at most −w·dual_clip·A; the
    slope in log r is −w·r·A where the minimum is r·A or r within the clip, else 0. "cispo": ℓ = −w·sg(clip(r))·A·log p.
    "sapo": ℓ = −w·(4/τ)·σ(τ·(r − 1))·A. To each kl_coef times an estimate is added, or r times that: with q = log p_ref
    − log p, k1 = −q, k2 = q²/2, k3 = e^q − q − 1. Through s each token that counts gets the mean of its sequence's
    slopes in log s. Held constant: old_log_probs, ref_log_probs, advantages, weights, mask, and the clipped ratio of
    "cispo".

    Args:
        log_probs: [B, T]; any float dtype and layout.
        old_log_probs: [B, T], of the policy that sampled the tokens.
        advantages: A [B] or [B, T].
        mask: [B, T], which tokens count, bool or 0 and 1; all of them without one. Others have loss and gradient 0,
            whatever they hold.
        ref_log_probs: [B, T], of the reference; read only where there is a kl.
        weights: w [B] or [B, T], importance corrections; they do not weigh the KL.
        objective: "clip" (PPO, GRPO, DAPO), "cispo" or "sapo".
        ratio: "token", or "sequence" (GSPO).
        clip_low: None for no lower bound.
        clip_high: None for clip_low; −1 or less leaves no ratio below it.
        dual_clip: above 1 as a rule, None for none; for "clip".
        kl: "k1", "k2", "k3" or None.
        kl_coef: of the estimate; 0 leaves it out of the loss.
        kl_ratio_weighted: whether the estimate is multiplied by the ratio, through which the slope passes.
        aggregation: "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "sum" or "none", over tokens that count.
        num_items: replaces the number of tokens, or of sequences, that a mean divides by, and divides a "sum".
        sequences: which of them a mean over sequences counts: "all" (TRL), or "non-empty" ones (verl).
        sapo_temperature_pos, sapo_temperature_neg: τ where A > 0, and elsewhere.
        grad_output, grad, grad_dtype, out, backend: as in refloss.cross_entropy.

    Returns:
        loss, [B, T] for "none". grads: "log_probs". intermediates: "losses", "ratio" and, with a kl, "kl" [B, T], 0
        where tokens do not count, and "clip_fraction": the share of those that count whose ratio is beyond
        1 + clip_high where A > 0 or below 1 − clip_low where A < 0; of "cispo" those beyond a bound, whatever A.

    Edges:
        A ratio at a bound: the slope passes. At dual_clip: half of it. No token, or sequence, that counts: a mean over
        them is NaN, and gradients are 0. NaN and infinite log-probabilities of tokens that count come out as torch has
        them, but for r times k3: where r is infinite its slope may be infinite too, and is NaN in torch.

    Raises:
        ValueError: a shape, an option or a buffer that does not fit; a kl without ref_log_probs, or a kl_coef without a
        kl. TypeError: a dtype that does not.
    """
    temperatures = sapo_temperature_pos, sapo_temperature_neg
    policy = policy_of(objective, ratio, clip_low, clip_high, dual_clip, kl, kl_coef, kl_ratio_weighted, temperatures)
    x = token_array(log_probs, "log_probs")
    shape = x.shape
    if kl is not None and ref_log_probs is None:
        raise ValueError(f"ref_log_probs is None; expected those of the reference, of which kl={kl!r} is told")
    given = {
        "log_probs": x,
        "old_log_probs": beside(old_log_probs, "old_log_probs", "log_probs", shape),
        "advantages": beside(advantages, "advantages", "log_probs", shape, by_sequence=True),
        "ref_log_probs": x if ref_log_probs is None else beside(ref_log_probs, "ref_log_probs", "log_probs", shape),
        "weights": np.broadcast_to(np.ones((1, 1)), shape)
        if weights is None
        else beside(weights, "weights", "log_probs", shape, by_sequence=True),
    }
    counts = arrays.counted(mask, shape, "one for each of log_probs")
    result, results = loss_of_tokens(
        LOOP,
        given,
        Options(grad_output, grad, grad_dtype, out, backend),
        aggregation_of(aggregation, num_items, sequences, counts),
        parameters=policy,
        by_mean=ratio == "sequence",
    )
    of_ratio, of_kl, clipped = results.notes
    clip_fraction = quotient(Fraction(int(np.count_nonzero(clipped))), Fraction(int(np.count_nonzero(counts))))
    result.intermediates.update({"ratio": of_ratio, "clip_fraction": clip_fraction})
    if kl is not None:
        result.intermediates["kl"] = of_kl
    return result
