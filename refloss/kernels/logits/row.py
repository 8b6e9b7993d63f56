"""A row of logits that are pairs, in two steps: what is to be known of the row, then one class at a time.

With m the largest logit, t its class, e_j = e^(y_j − m) and S = Σ_{j≠t} e_j, summed on a grid of its own,

    Z = 1 + S,    lse = m + log1p(S),    p_j = e_j/Z,    −log p_j = (m − y_j) + log1p(S)

of which nothing cancels. The target puts masses q_j on the classes, Q in all. The gradient of a row whose loss has the
cotangent a, and whose ζ·lse² has the cotangent b, is

    ∂/∂y_j = a·(Q·p_j − q_j) + b·2ζ·lse·p_j = (a·D_j + b·2ζ·lse·e_j)/Z

    D_j = Q·e_j − q_j·Z,    and for class t where S < 1:    D_t = Σ_{j≠t} q_j − q_t·S

a difference of pairs, so that what is left where both terms agree in 64 bits still has 34; then it is multiplied by the
derivative of the logit, and rounded once. Errors are near 2^-98 of the terms.

    softmax = softmax_of(high, low, terms, terms_low)  # all classes of a row, [C] each
    masses = label_masses(softmax, label, (high[label], low[label]), distances, others, of_targets)
    push = push_of(softmax, a, b_zeta)
    save_row(statistics[r], Row(softmax, masses, push))  # [WIDTH] float64

    row = load_row(statistics[r])  # whenever the class's logit is known again
    mass = mass_of_label(j, label, of_targets)
    gradient = gradient_of_class(row, j, logit, mass, slope)  # a pair, for formats.store_pair

of_targets are softmax.loop.Terms; distances = Σ w_j·(m − y_j) and others = Σ_{j≠t} w_j matter with smoothing only:
distance_sum and weights_but_top compute them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refloss import jit
from refloss.kernels.softmax.loop import LOST
from refloss.kernels.softmax.split import scan
from refloss.numerics.accurate import exp_significand, log1p_accurate
from refloss.numerics.bits import ROUND_TO_INTEGER, float64_from_bits
from refloss.numerics.exponential import LOG2_E, UNDERFLOW, scale
from refloss.numerics.formats import from_ordinal, infinity_bits, lowest_ordinal
from refloss.numerics.pairs import add, divide, multiply, negate, pair, scaled
from refloss.numerics.sums import long_sum, long_total, pair_counts

Pair = tuple[float, float]

# float64 numbers that a row is stored in, and its softmax alone.
WIDTH, SOFTMAX_WIDTH = 22, 10
# What is smaller than this beside the terms that it is left of is a rounding error of pairs.
NOTHING = 2.0**-92
# A low part below it is one as well: a gradient that is a short number, perhaps a tie, must not be turned into its
# neighbour.
DUST = 2.0**-96
# No grid is finer: below, terms are lost beside others that are lost themselves.
_LEAST_EXPONENT = -1000


class Softmax(NamedTuple):
    """What is to be known of a row's logits."""

    defined: bool  # no NaN, no +inf, at least one finite logit
    top: int  # t, the first class of the largest logit
    maximum: Pair  # of an undefined row: its lse
    others: Pair  # S
    total: Pair  # Z
    log_total: Pair  # log1p(S)


class Masses(NamedTuple):
    """What is to be known of a row's target; pairs."""

    total: Pair  # Q
    others: Pair  # of all classes but t
    likelihood: Pair  # Σ q_j·(lse − y_j)
    nll: Pair  # the same without weights and smoothing


class Push(NamedTuple):
    """What the gradient of a row is multiplied by; pairs."""

    coefficient: Pair  # a
    excess: Pair  # b·2ζ·lse


class Row(NamedTuple):
    """What the gradient of a class depends on, beside its own logit and mass."""

    softmax: Softmax
    masses: Masses
    push: Push


@jit.scalar
def significand_of(logit, maximum):
    """e^(logit − maximum) of two pairs as a pair and a power of two; a pair of zeros where float64 has none."""
    difference = add(logit, negate(maximum))
    vanishes = not difference[0] > UNDERFLOW
    top, rest, n = exp_significand(UNDERFLOW if vanishes else difference[0], 0.0 if vanishes else difference[1])
    return (0.0 if vanishes else top, 0.0 if vanishes else rest), n


@jit.scalar
def term_of(logit, maximum):
    """e^(logit − maximum) of two pairs, as a pair."""
    value, n = significand_of(logit, maximum)
    return scale(value[0], n), scale(value[1], n)


@jit.scalar
def grid_of(reference, maximum):
    """The exponent of a grid for exponentials of logits up to a reference, relative to the maximum."""
    gap = (reference - maximum) * LOG2_E
    gap = gap if gap > _LEAST_EXPONENT else float(_LEAST_EXPONENT)
    # The nearest integer and one more are above it.
    return np.int64((gap + ROUND_TO_INTEGER) - ROUND_TO_INTEGER) + 1


@jit.scalar
def counts_of(value, n, exponent):
    """Counts of value·2^n, a pair, on a grid; for long_total."""
    shift = n - exponent
    shift = shift if shift > _LEAST_EXPONENT else _LEAST_EXPONENT
    power = float64_from_bits((shift + 1023) << 52)
    return pair_counts(value[0] * power, value[1] * power)


@jit.helper
def softmax_of_sums(top, maximum, coarse, fine, finest, exponent):
    """A row from its largest logit and the sums of the others' counts."""
    high, low = long_total(coarse, fine, finest)
    others = scale(high, exponent), scale(low, exponent)
    return Softmax(True, top, maximum, others, add(pair(1.0), others), log1p_accurate(others[0], others[1]))


@jit.scalar
def undefined_softmax(sound):
    """A row with NaN or +inf, or with nothing but −inf."""
    none, undefined = pair(0.0), pair(np.nan)
    return Softmax(False, 0, (-np.inf if sound else np.nan, 0.0), undefined, undefined, none)


@jit.helper
def _find_top(high, low, largest):
    """The first class of the largest logit, whose high part is given."""
    top = -1
    for i in range(high.size):
        if high[i] == largest and (top < 0 or low[i] > low[top]):
            top = i
    return top


@jit.scalar
def _add_terms(high, low, maximum, exponent, terms, terms_low):
    """Exponentials relative to a maximum, and the sums of their counts."""
    coarse, fine, finest = 0, 0, 0
    for i in range(high.size):
        value, n = significand_of((high[i], low[i]), maximum)
        terms[i], terms_low[i] = scale(value[0], n), scale(value[1], n)
        counts = counts_of(value, n, exponent)
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
    return coarse, fine, finest


@jit.helper
def softmax_of(high, low, terms, terms_low):
    """Of the logits of a whole row, pairs; terms receive the e_j, pairs as well."""
    highest, largest = scan(high, lowest_ordinal(high), infinity_bits(high))
    sound = largest <= infinity_bits(high) and highest < infinity_bits(high)
    if not sound or highest <= lowest_ordinal(high):
        return undefined_softmax(sound)
    top = _find_top(high, low, from_ordinal(highest, high))
    maximum = (high[top], low[top])
    reference = lowest_ordinal(high)
    start, stop = 0, top
    for _ in range(2):
        reference, _largest = scan(high[start:stop], reference, largest)
        start, stop = top + 1, high.size
    exponent = grid_of(from_ordinal(reference, high), maximum[0])
    coarse, fine, finest = 0, 0, 0
    start, stop = 0, top
    for _ in range(2):
        here, here_low = high[start:stop], low[start:stop]
        counts = _add_terms(here, here_low, maximum, exponent, terms[start:stop], terms_low[start:stop])
        coarse += counts[0]
        fine += counts[1]
        finest += counts[2]
        start, stop = top + 1, high.size
    terms[top], terms_low[top] = 1.0, 0.0
    return softmax_of_sums(top, maximum, coarse, fine, finest, exponent)


@jit.scalar
def lse_of(softmax):
    """lse, a pair: −inf for a row of nothing else, NaN for one with NaN or +inf."""
    return add(softmax.maximum, softmax.log_total)


@jit.scalar
def is_sure(softmax):
    """Whether class t has more than half of the probability."""
    return softmax.others[0] < 1.0


@jit.scalar
def nll_of(softmax, logit):
    """−log p of a class with a logit."""
    return add(add(softmax.maximum, negate(logit)), softmax.log_total)


@jit.scalar
def distance_term(weight, logit, maximum):
    """weight·(maximum − logit) of pairs."""
    return multiply(weight, add(maximum, negate(logit)))


@jit.helper
def distance_sum(high, low, weight, maximum, products, products_low):
    """Σ w_j·(m − y_j) of float64 weights, a pair."""
    for i in range(high.size):
        products[i], products_low[i] = distance_term(pair(weight[i]), (high[i], low[i]), maximum)
    return add(long_sum(products), long_sum(products_low))


@jit.helper
def weights_but_top(softmax, terms, products):
    """Σ_{j≠t} w_j, also where w_t leaves nothing of it in their sum."""
    weight = terms.weight[softmax.top]
    others = add(terms.weight_total, pair(-weight))
    if abs(others[0]) < LOST * abs(weight):
        for i in range(products.size):
            products[i] = 0.0 if i == softmax.top else terms.weight[i]
        others = long_sum(products)
    return others


@jit.scalar
def mass_of_label(j, label, terms):
    """q_j of a label, smoothed or not, a pair."""
    weight = pair(terms.weight[j])
    kept = multiply(terms.keep, weight)
    kept = (kept[0] if j == label else 0.0, kept[1] if j == label else 0.0)
    return add(kept, multiply(terms.uniform, weight))


@jit.helper
def label_masses(softmax, label, logit, distances, others, terms):
    """Those of a label that has a logit; distances and others matter with smoothing only."""
    weight = pair(terms.weight[label])
    nll = nll_of(softmax, logit)
    own = multiply(terms.keep, weight)
    beside = own if label != softmax.top else pair(0.0)
    likelihood = multiply(weight, nll)
    if not terms.smooth:
        return Masses(own, beside, likelihood, nll)
    spread = add(multiply(terms.weight_total, softmax.log_total), distances)
    return Masses(
        add(own, multiply(terms.uniform, terms.weight_total)),
        add(beside, multiply(terms.uniform, others)),
        add(multiply(terms.keep, likelihood), multiply(terms.uniform, spread)),
        nll,
    )


@jit.scalar
def push_of(softmax, coefficient, z_coefficient):
    """Of the cotangent a and of ζ times the cotangent b, pairs; where that is 0 the lse is of no account."""
    if z_coefficient[0] == 0.0:
        return Push(coefficient, pair(0.0))
    return Push(coefficient, multiply((2.0 * z_coefficient[0], 2.0 * z_coefficient[1]), lse_of(softmax)))


@jit.scalar
def z_loss_of(softmax, z_loss):
    """ζ·lse², a pair; 0 for a ζ of 0, whatever lse² overflows to."""
    if z_loss[0] == 0.0:
        return pair(0.0)
    lse = lse_of(softmax)
    return multiply(multiply(z_loss, lse), lse)


@jit.scalar
def probability_of(softmax, term):
    """p_j from e_j."""
    return divide(term, softmax.total)


@jit.scalar
def difference_of_class(softmax, masses, at_top, term, mass):
    """D_j, and the larger of its two terms."""
    alone = at_top and is_sure(softmax)
    pushed = multiply(masses.total, term)
    pulled = multiply(mass, softmax.total)
    sparing = multiply(mass, softmax.others)
    pushed = (masses.others[0] if alone else pushed[0], masses.others[1] if alone else pushed[1])
    pulled = (sparing[0] if alone else pulled[0], sparing[1] if alone else pulled[1])
    return add(pushed, negate(pulled)), max(abs(pushed[0]), abs(pulled[0]))


@jit.scalar
def gradient_of_difference(softmax, push, difference, term, slope):
    """(a·D_j + b·2ζ·lse·e_j)/Z times the derivative of the logit: a pair that is ready for its one rounding."""
    whole = add(multiply(push.coefficient, difference), multiply(push.excess, term))
    value = scaled(multiply(whole, divide(pair(1.0), softmax.total)), slope)
    return value[0], value[1] if abs(value[1]) >= DUST * abs(value[0]) else 0.0


@jit.scalar
def gradient_of_term(row, j, term, mass, slope):
    """The gradient of class j of a row from its e_j, its mass and the derivative of its logit; all pairs."""
    difference, size = difference_of_class(row.softmax, row.masses, j == row.softmax.top, term, mass)
    nothing = abs(difference[0]) <= NOTHING * size
    difference = (0.0 if nothing else difference[0], 0.0 if nothing else difference[1])
    return gradient_of_difference(row.softmax, row.push, difference, term, slope)


@jit.scalar
def gradient_of_class(row, j, logit, mass, slope):
    """The same from its logit."""
    return gradient_of_term(row, j, term_of(logit, row.softmax.maximum), mass, slope)


@jit.scalar
def put_pair(memory, at, value):
    """A pair into two float64."""
    memory[at] = value[0]
    memory[at + 1] = value[1]


@jit.scalar
def get_pair(memory, at):
    """The pair that put_pair has stored."""
    return memory[at], memory[at + 1]


@jit.helper
def save_softmax(memory, softmax):
    """What is to be known of a row's logits into SOFTMAX_WIDTH float64."""
    memory[0] = 1.0 if softmax.defined else 0.0
    memory[1] = np.float64(softmax.top)
    put_pair(memory, 2, softmax.maximum)
    put_pair(memory, 4, softmax.others)
    put_pair(memory, 6, softmax.total)
    put_pair(memory, 8, softmax.log_total)


@jit.helper
def load_softmax(memory):
    """What save_softmax has stored."""
    top = int(memory[1])
    total, log_total = get_pair(memory, 6), get_pair(memory, 8)
    return Softmax(memory[0] > 0.0, top, get_pair(memory, 2), get_pair(memory, 4), total, log_total)


@jit.helper
def save_row(memory, row):
    """A row into WIDTH float64."""
    masses, push = row.masses, row.push
    save_softmax(memory, row.softmax)
    put_pair(memory, 10, masses.total)
    put_pair(memory, 12, masses.others)
    put_pair(memory, 14, masses.likelihood)
    put_pair(memory, 16, masses.nll)
    put_pair(memory, 18, push.coefficient)
    put_pair(memory, 20, push.excess)


@jit.helper
def load_row(memory):
    """The row that save_row has stored."""
    masses = Masses(get_pair(memory, 10), get_pair(memory, 12), get_pair(memory, 14), get_pair(memory, 16))
    return Row(load_softmax(memory), masses, Push(get_pair(memory, 18), get_pair(memory, 20)))
