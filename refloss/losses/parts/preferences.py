"""What the losses of preferences say of a pair of sequences, by kind, and what their calls share.

With a = chosen − its reference, b = rejected − its reference, h = a − b and x = β·h, all of them pairs; σ is the
sigmoid, s(x) = log(1 + e^x) = −log σ(−x), and σ′(x) = σ(x)·σ(−x).

Of most kinds all terms have one sign. What would cancel is told where it is computed; a sum whose terms have both signs
for good ("robust", "discopop") keeps an error of 2^-98 of its terms.
"""

from __future__ import annotations

import decimal
import functools
import math
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss import arrays, jit
from refloss.cases.preferences import KINDS, TAU
from refloss.device import empty
from refloss.kernels.preferences.loop import Given, Parameters, PreferenceLoop
from refloss.kernels.preferences.run import Task, preference_losses
from refloss.numerics.accurate import (
    exp_alone,
    exp_less_one,
    exp_of_size,
    log1p_accurate,
    log_accurate,
    logistic_accurate,
)
from refloss.numerics.exact import as_pair, exact_sum, quotient
from refloss.numerics.exponential import OVERFLOW
from refloss.numerics.pairs import add, divide, multiply, negate, pair, two_sum
from refloss.result import Intermediates, LossResult

if TYPE_CHECKING:
    from refloss.options import Options

REDUCTIONS = ("mean", "sum", "none")
# The number of a kind in compiled code. The last one is no kind of preference_loss: its sequences have no partners.
_SIGMOID, _ROBUST, _HINGE, _IPO, _EXO, _NCA, _SPPO, _APO_ZERO, _APO_DOWN, _DISCOPOP, _SIMPO, _ORPO, KTO = range(13)
# Below it e^y − 1 is a series, and a divergence of distributions so close is computed from their distance.
_SERIES, _NEXT = 0.5, 0.25
# Below it the third power of δ, of which the series of that divergence has no more, is nothing beside 1.
_CLOSEST = 2.0**-20
# log(1 − e^p) is log −p above it, which is there taken of a number that is this much larger.
_ALL_BUT_SURE, _DOUBLINGS, _LARGER = -(2.0**-900), 200.0, 2.0**200
_LOG_HALF = -0.6931471805599453
_LOG_2 = (0.6931471805599453, 2.3190468138462996e-17, 5.707708438416212e-34)
# Of a logarithm of 1 − ε, from which any ε that is a float64 has to be told.
_DIGITS = 700


class Sides(NamedTuple):
    """Of x: σ(x), σ(−x), −log σ(x) and −log σ(−x), pairs."""

    yes: tuple[float, float]
    no: tuple[float, float]
    missed: tuple[float, float]
    hit: tuple[float, float]


@jit.helper
def _sides(x):
    if x[0] != x[0]:
        return Sides(pair(x[0]), pair(x[0]), pair(x[0]), pair(x[0]))
    of = logistic_accurate(x[0], x[1])
    if x[0] >= 0.0:
        return Sides(of.larger, of.smaller, of.small, add(of.small, x))
    return Sides(of.smaller, of.larger, add(of.small, negate(x)), of.small)


@jit.helper
def _steepness(x):
    """σ′(x)."""
    sides = _sides(x)
    return multiply(sides.yes, sides.no)


@jit.helper
def _missing(y):
    """1 − e^−|y|."""
    if abs(y[0]) <= _SERIES:
        return negate(exp_less_one(y if y[0] < 0.0 else negate(y)))
    return add(pair(1.0), negate(exp_of_size(y[0], y[1])))


@jit.scalar
def _in_difference(value, slope, beta):
    """A function of x as one of a and b."""
    steep = multiply(slope, pair(beta))
    return value, steep, negate(steep)


@jit.helper
def _beyond(ratio, factor, target):
    """factor·ratio − target, which has three parts: next to 0 only the products are exact."""
    top = add(multiply(pair(factor), pair(ratio[0])), pair(-target[0]))
    return add(add(top, multiply(pair(factor), pair(ratio[1]))), (-target[1], -target[2]))


@jit.helper
def _smoothed(h, p):
    """(1 − ε)·s(−x) + ε·s(x), whose slope is −(1 − ε)·σ(−x) + ε·σ(x) = (1 − ε)·σ(−x)·(e^δ − 1).

    δ = x − log((1 − ε)/ε) is what is left next to 0.
    """
    x = add(multiply(h, pair(p.beta)), pair(-p.gamma))
    sides, kept, other = _sides(x), two_sum(1.0, -p.smoothing), pair(p.smoothing)
    if p.smoothing == 0.0:
        return _in_difference(sides.missed, negate(sides.no), p.beta)
    value, delta = add(multiply(kept, sides.missed), multiply(other, sides.hit)), _beyond(h, p.beta, p.balance)
    if abs(delta[0]) < _NEXT:
        slope = multiply(multiply(kept, sides.no), exp_less_one(delta))
    else:
        slope = add(negate(multiply(kept, sides.no)), multiply(other, sides.yes))
    return _in_difference(value, slope, p.beta)


@jit.helper
def _robust(x, p):
    """((1 − ε)·s(−x) − ε·s(x))/(1 − 2·ε), whose slope is −((1 − ε)·σ(−x) + ε·σ(x))/(1 − 2·ε)."""
    sides, kept, other = _sides(x), two_sum(1.0, -p.smoothing), pair(p.smoothing)
    if p.smoothing == 0.0:
        return _in_difference(sides.missed, negate(sides.no), p.beta)
    whole = two_sum(1.0, -2.0 * p.smoothing)
    value = add(multiply(kept, sides.missed), negate(multiply(other, sides.hit)))
    slope = add(multiply(kept, sides.no), multiply(other, sides.yes))
    return _in_difference(divide(value, whole), negate(divide(slope, whole)), p.beta)


@jit.helper
def _hinge(x, p):
    """max(0, 1 − x), without a slope where that is 0."""
    margin = add(pair(1.0), negate(x))
    met = margin[0] <= 0.0
    return _in_difference(pair(0.0) if met else margin, pair(0.0 if met else -1.0), p.beta)


@jit.helper
def _from_optimum(ratio, p, sign):
    """ratio − 1/2β, or ratio + 1/2β; 1/2β is a quotient of which nothing overflows."""
    divisor, power = p.optimum
    return divide(_beyond(ratio, divisor, (sign * power, 0.0, 0.0)), pair(divisor))


@jit.helper
def _ipo(h, p):
    """(h − 1/2β)²."""
    beyond = _from_optimum(h, p, 1.0)
    return _in_difference(multiply(beyond, beyond), beyond, 2.0)


@jit.helper
def _sppo(a, b, p):
    """(a − 1/2β)² + (b + 1/2β)²."""
    above, below = _from_optimum(a, p, 1.0), _from_optimum(b, p, -1.0)
    value = add(multiply(above, above), multiply(below, below))
    return value, multiply(pair(2.0), above), multiply(pair(2.0), below)


@jit.helper
def _exo(h, p):
    """KL of [σ(x), σ(−x)] from [1 − ε, ε], whose slope is σ′(x)·δ with δ = x − log((1 − ε)/ε).

    For distributions that are close: −log(1 + ε·(e^−δ − 1)) − σ(−x)·δ, whose terms are as small as δ, and for the
    closest, as the value is as small as δ², its series: σ′(x)·δ²·(1/2 − (1 − 2·σ(x))·δ/6 + (1 − 6·σ′(x))·δ²/24 − …).
    """
    sides, delta = _sides(multiply(h, pair(p.beta))), _beyond(h, p.beta, p.balance)
    steep = multiply(sides.yes, sides.no)
    if abs(delta[0]) < _CLOSEST:
        fourth = multiply(delta, divide(add(pair(1.0), multiply(pair(-6.0), steep)), pair(24.0)))
        third = divide(add(sides.yes, negate(sides.no)), pair(6.0))
        series = add(pair(0.5), multiply(delta, add(third, fourth)))
        value = multiply(steep, multiply(multiply(delta, delta), series))
    elif abs(delta[0]) < _NEXT:
        ratio = multiply(pair(p.smoothing), exp_less_one(negate(delta)))
        value = negate(add(log1p_accurate(ratio[0], ratio[1]), multiply(sides.no, delta)))
    else:
        most = multiply(sides.yes, negate(add(sides.missed, p.log_most)))
        value = add(most, multiply(sides.no, negate(add(sides.hit, p.log_least))))
    return _in_difference(value, multiply(steep, delta), p.beta)


@jit.helper
def _nca(a, b, p):
    """s(−βa) + s(βa)/2 + s(βb)/2, whose slope σ(βa)/2 − σ(−βa) is σ(−βa)·(e^(βa − log 2) − 1) next to 0."""
    beta, half = pair(p.beta), pair(0.5)
    of_a, of_b = _sides(multiply(a, beta)), _sides(multiply(b, beta))
    value = add(of_a.missed, multiply(half, add(of_a.hit, of_b.hit)))
    near = _beyond(a, p.beta, _LOG_2)
    if abs(near[0]) < _NEXT:
        slope = multiply(of_a.no, exp_less_one(near))
    else:
        slope = add(multiply(half, of_a.yes), negate(of_a.no))
    return value, multiply(beta, slope), multiply(beta, multiply(half, of_b.yes))


@jit.helper
def _apo_zero(a, b, p):
    """σ(−βa) + σ(βb)."""
    beta = pair(p.beta)
    of_a, of_b = _sides(multiply(a, beta)), _sides(multiply(b, beta))
    value = add(of_a.no, of_b.yes)
    for_a, for_b = multiply(of_a.yes, of_a.no), multiply(of_b.yes, of_b.no)
    return value, negate(multiply(beta, for_a)), multiply(beta, for_b)


@jit.helper
def _steeper(first, second, apart, together):
    """σ′(first) − σ′(second), of which are given their difference, second − first, and their sum.

    With m the smaller and M the larger of their sizes it is σ′(m)·σ(M)²·(1 − e^−|difference|)·(1 − e^−|sum|), positive
    where the second is larger: nothing is subtracted.
    """
    near, far = (first, second) if abs(first[0]) <= abs(second[0]) else (second, first)
    beyond = _sides(far if far[0] >= 0.0 else negate(far)).yes
    size = multiply(_steepness(near), multiply(beyond, beyond))
    size = multiply(size, multiply(_missing(apart), _missing(together)))
    return size if (apart[0] < 0.0) == (together[0] < 0.0) else negate(size)


@jit.helper
def _apo_down(a, b, h, p):
    """σ(βa) + σ(−x); the difference of two slopes is that of βa and x = βa − βb."""
    beta = pair(p.beta)
    of_a, of_b, x = multiply(a, beta), multiply(b, beta), multiply(h, beta)
    together = multiply(beta, add(a, h))
    value = add(_sides(of_a).yes, _sides(x).no)
    slope = _steeper(of_a, x, negate(of_b), together)
    return value, multiply(beta, slope), multiply(beta, _steepness(x))


@jit.helper
def _discopop(x, p):
    """s(−x)·σ(−y) + e^−x·σ(y) with y = x/τ.

    Its slope is −σ(−x)·σ(−y) − e^−x·σ(y) + (e^−x − s(−x))·σ′(y)/τ. e^−x may overflow where its product does not.
    """
    y = divide(x, pair(TAU))
    of_x, of_y = _sides(x), _sides(y)
    if x[0] >= 0.0:
        grown = multiply(exp_of_size(x[0], x[1]), of_y.yes)
    else:
        exponent = add(y, negate(x))
        grown = multiply(exp_of_size(exponent[0], exponent[1]), of_y.no)
    value = add(multiply(of_x.missed, of_y.no), grown)
    turned = multiply(of_y.no, add(grown, negate(multiply(of_x.missed, of_y.yes))))
    slope = add(divide(turned, pair(TAU)), negate(add(multiply(of_x.no, of_y.no), grown)))
    return _in_difference(value, slope, p.beta)


@jit.helper
def _log_odds(p):
    """log p − log(1 − p) and 1 − p, from log p ≤ 0; above 0 they are undefined."""
    missing = _missing(p)
    if not p[0] <= 0.0:
        return pair(np.nan), pair(np.nan)
    if p[0] == 0.0:
        return pair(np.inf), pair(0.0)
    if p[0] > _ALL_BUT_SURE:
        grown = log_accurate(-p[0] * _LARGER, 0.0)
        return add(multiply(pair(_DOUBLINGS), (_LOG_2[0], _LOG_2[1])), negate(grown)), missing
    if p[0] > _LOG_HALF:
        return add(p, negate(log_accurate(missing[0], missing[1]))), missing
    power = exp_of_size(p[0], p[1])
    return add(p, negate(log1p_accurate(-power[0], -power[1]))), missing


@jit.helper
def _orpo(w, l, p):  # noqa: E741
    """−w + β·s(−z) with z the difference of log-odds, from mean log-probabilities.

    ∂/∂w = −1 − β·σ(−z)/(1 − e^w) and ∂/∂l = β·σ(−z)/(1 − e^l). The quotient of two numbers that vanish where w does
    is σ(z)·e^(log-odds of l − w).
    """
    odds_w, missing_w = _log_odds(w)
    odds_l, missing_l = _log_odds(l)
    z = add(odds_w, negate(odds_l))
    sides, beta = _sides(z), pair(p.beta)
    if z[0] >= 0.0:
        exponent = add(odds_l, negate(w))
        bounded = OVERFLOW if exponent[0] > OVERFLOW else exponent[0]
        power = exp_alone(bounded, exponent[1]) if bounded > -OVERFLOW else pair(0.0)
        pull = multiply(sides.yes, power)
    else:
        pull = divide(sides.no, missing_w)
    value = add(negate(w), multiply(beta, sides.missed))
    for_w = negate(add(pair(1.0), multiply(beta, pull)))
    return value, for_w, multiply(beta, divide(sides.no, missing_l))


@jit.helper
def _kto(a, desirable, p):
    """λ·σ(∓y) with y = β·(a − z), for what is desirable and what is not; z is constant."""
    beta = pair(p.beta)
    sides = _sides(multiply(beta, add(a, pair(-p.kl))))
    slope = multiply(beta, multiply(sides.yes, sides.no))
    if desirable:
        weight = pair(p.desirable)
        return multiply(weight, sides.no), negate(multiply(weight, slope)), pair(0.0)
    weight = pair(p.undesirable)
    return multiply(weight, sides.yes), multiply(weight, slope), pair(0.0)


@jit.helper
def _of_difference(h, p):
    """Kinds that know no more than h."""
    if p.kind == _IPO:
        return _ipo(h, p)
    if p.kind == _EXO:
        return _exo(h, p)
    x = multiply(h, pair(p.beta))
    if p.kind == _ROBUST:
        return _robust(x, p)
    if p.kind == _HINGE:
        return _hinge(x, p)
    if p.kind == _DISCOPOP:
        return _discopop(x, p)
    return _smoothed(h, p)


@jit.helper
def _of_both(a, b, p):
    """Kinds that know a and b."""
    if p.kind == _NCA:
        return _nca(a, b, p)
    if p.kind == _SPPO:
        return _sppo(a, b, p)
    if p.kind == _APO_ZERO:
        return _apo_zero(a, b, p)
    if p.kind == _APO_DOWN:
        return _apo_down(a, b, add(a, negate(b)), p)
    return _orpo(a, b, p)


@jit.helper
def _of_pair(a, b, p):
    """The value of a pair, and its derivatives for a and b."""
    if p.kind == KTO:
        return _kto(a, b[0] != 0.0, p)
    both = p.kind in (_NCA, _SPPO, _APO_ZERO, _APO_DOWN, _ORPO)
    return _of_both(a, b, p) if both else _of_difference(add(a, negate(b)), p)


# One loop for all kinds: most of its machine code are exponentials and logarithms, which they share.
LOOP = PreferenceLoop("preferences", _of_pair)


@functools.lru_cache(maxsize=64)
def parameters_of(kind: str, beta: float, smoothing: float, gamma: float) -> Parameters:
    """What a kind is told, with what follows from it."""
    mantissa, exponent = math.frexp(beta)
    power = math.ldexp(1.0, -exponent) if exponent > -sys.float_info.max_exp else math.inf
    known = Parameters(KINDS.index(kind), beta, smoothing, gamma, optimum=(2.0 * mantissa, power))
    if smoothing in (0.0, 1.0):
        return known
    with decimal.localcontext(prec=_DIGITS):
        small = decimal.Decimal(smoothing)
        most, least = Fraction((1 - small).ln()), Fraction(small.ln())
    balance = Fraction(gamma) + most - least
    high = float(balance)
    parts = (high, *as_pair(balance - Fraction(high)))
    return known._replace(log_most=as_pair(most), log_least=as_pair(least), balance=parts)


def loss_of_pairs(
    inputs: dict[str, np.ndarray],
    second: np.ndarray | None,
    references: tuple[np.ndarray | None, np.ndarray | None],
    options: Options,
    parameters: Parameters,
    *,
    reduction: str,
) -> LossResult:
    """Run the loop over inputs, named as arguments are, which have gradients: chosen and rejected, or one of them.

    second takes the place of what was rejected, where that has no gradient; references that are absent are 0.
    """
    names, first = list(inputs), next(iter(inputs.values()))
    nothing = np.zeros((), first.dtype)
    cotangent = options.cotangent(first.shape if reduction == "none" else ())
    wanted = options.wanted(names)
    buffers: dict[str, np.ndarray | None] = {}
    for name, array in inputs.items():
        if array is first:
            buffers[name] = options.buffer(array, name, wanted=name in wanted)
        else:
            buffers[name] = empty(array.shape, array.dtype, like=array) if name in wanted else None
    both = (*inputs.values(), *[nothing if second is None else second] * (2 - len(inputs)))
    task = Task(
        LOOP,
        (*both[:2], *(nothing if reference is None else reference for reference in references)),  # type: ignore[arg-type]
        (*buffers.values(), None)[:2],  # type: ignore[arg-type]
        Given(parameters, cotangent.reshape(-1), float(first.size if reduction == "mean" else 1)),
    )
    losses = preference_losses(task, options.backend)
    each = losses[0].reshape(first.shape)
    return LossResult(
        loss=each if reduction == "none" else quotient(exact_sum(losses), Fraction(int(task.given.divisor))),
        grads={name: buffer for name, buffer in buffers.items() if buffer is not None},
        intermediates=Intermediates({"losses": each}),
    )


def log_probs(value: object, shape: tuple[int, ...], name: str, like: str) -> np.ndarray:
    """Log-probabilities of the same sequences as others."""
    array = arrays.float_array(value, name)
    arrays.check_shape(array, shape, name, f"the shape of {like}")
    return array
