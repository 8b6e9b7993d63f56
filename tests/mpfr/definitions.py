"""Losses of an element and their derivatives, as their papers and torch state them.

Each takes and returns MPFR numbers: the value, and its derivatives in the first and the second argument. They are
written so that nothing cancels but what the formula itself subtracts, and so that what is 0 is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import gmpy2
from gmpy2 import exp, log, log1p, mpfr

from tests.mpfr.rounding import Real

Slopes = tuple[Real, Real, Real]
Definition = Callable[..., Slopes]

ZERO, ONE = mpfr(0), mpfr(1)


def sigmoid(x: Real) -> Real:
    """1/(1 + e^−x)."""
    return 1 / (1 + exp(-x))


def softplus(x: Real) -> Real:
    """log(1 + e^x)."""
    return log1p(exp(x)) if x < 0 else x + log1p(exp(-x))


def sign(value: Real) -> Real:
    """−1, 0 or 1."""
    return mpfr(gmpy2.sign(value))


def real_of(condition: bool) -> Real:
    """1 or 0."""
    return ONE if condition else ZERO


def mse(x: Real, t: Real) -> Slopes:
    """(x − t)²."""
    d = x - t
    return d * d, 2 * d, -2 * d


def l1(x: Real, t: Real) -> Slopes:
    """|x − t|."""
    d = x - t
    return abs(d), sign(d), -sign(d)


def huber(x: Real, t: Real, delta: Real) -> Slopes:
    """d²/2 for |d| ≤ δ, else δ·(|d| − δ/2)."""
    d = x - t
    if abs(d) <= delta:
        return d * d / 2, d, -d
    return delta * (abs(d) - delta / 2), delta * sign(d), -delta * sign(d)


def smooth_l1(x: Real, t: Real, beta: Real) -> Slopes:
    """d²/2β for |d| < β, else |d| − β/2."""
    d = x - t
    if abs(d) < beta:
        return d * d / (2 * beta), d / beta, -d / beta
    return abs(d) - beta / 2, sign(d), -sign(d)


def bce(p: Real, t: Real) -> Slopes:
    """−t·max(log p, −100) − (1 − t)·max(log(1 − p), −100), with torch's derivatives."""
    positive, negative = log(p), log1p(-p)
    value = -t * max(positive, mpfr(-100)) - (1 - t) * max(negative, mpfr(-100))
    return value, (p - t) / max(p * (1 - p), mpfr(1e-12)), negative - positive


def bce_with_logits(x: Real, t: Real, factor: Real = ONE) -> Slopes:
    """p·t·softplus(−x) + (1 − t)·softplus(x)."""
    positive, negative = softplus(-x), softplus(x)
    value = factor * t * positive + (1 - t) * negative
    slope = (1 - t) * sigmoid(x) - factor * t * sigmoid(-x)
    return value, slope, (factor - 1) * positive - x


def soft_margin(x: Real, y: Real) -> Slopes:
    """log(1 + e^−yx); y has no derivative."""
    return softplus(-y * x), -y * sigmoid(-y * x), ZERO


def hinge_embedding(x: Real, y: Real, margin: Real) -> Slopes:
    """x unless y = −1, and max(0, m − x) unless y = 1; y has no derivative."""
    plain, lacking = real_of(y != -1), real_of(y != 1)
    return plain * x + lacking * max(margin - x, ZERO), plain - lacking * real_of(x <= margin), ZERO


def kl_div(x: Real, t: Real) -> Slopes:
    """t·(log t − x); the derivative in t = 0 is torch's."""
    if t == 0:
        return -t * x, -t, gmpy2.nan()
    return t * (log(t) - x), -t, log(t) + 1 - x


def kl_div_of_log(x: Real, u: Real) -> Slopes:
    """e^u·(u − x)."""
    p = exp(u)
    return p * (u - x), -p, p * (u - x + 1)


def margin_ranking(x: Real, z: Real, y: Real, margin: Real) -> tuple[Real, Real, Real, Real]:
    """max(0, m − y·(x − z)); at the hinge the derivatives of the side that has some."""
    hinge = margin - y * (x - z)
    if hinge < 0:
        return ZERO, ZERO, ZERO, ZERO
    return hinge, -y, y, z - x


def gaussian_nll(x: Real, t: Real, var: Real, eps: Real, *, full: bool) -> tuple[Real, Real, Real, Real]:
    """(log v + d²/v)/2 with v = max(var, ε), whose derivative is not clamped."""
    d, v = x - t, max(var, eps)
    value = log(v) + d * d / v
    value = value + log(2 * gmpy2.const_pi()) if full else value
    return value / 2, d / v, -d / v, (v - d * d) / (2 * v * v)


def poisson_nll(x: Real, t: Real, *, log_input: bool, full: bool, eps: Real) -> Slopes:
    """e^x − t·x, or x − t·log(x + ε), and Stirling's term for t > 1; the derivative in t ≤ 0 is torch's."""
    if log_input:
        value, slope, of_target = exp(x) - t * x, exp(x) - t, -x
    else:
        value, slope, of_target = x - t * log(x + eps), 1 - t / (x + eps), -log(x + eps)
    if full and t > 1:
        value += t * log(t) - t + log(2 * gmpy2.const_pi() * t) / 2
        of_target += log(t) + 1 / (2 * t)
    return value, slope, gmpy2.nan() if full and t <= 0 else of_target


def sigmoid_focal(x: Real, t: Real, alpha: Real, gamma: Real) -> Slopes:
    """a·m^γ·b with m the missed probability, b the binary cross-entropy."""
    p, q = sigmoid(x), sigmoid(-x)
    b = t * softplus(-x) + (1 - t) * softplus(x)
    a, a_slope = (ONE, ZERO) if alpha < 0 else (alpha * t + (1 - alpha) * (1 - t), 2 * alpha - 1)
    m = p * (1 - t) + q * t
    power = m**gamma
    # p − t is p·(1 − t) − q·t.
    slope = a * power * (p * (1 - t) - q * t + gamma * b * (1 - 2 * t) * p * q / m)
    return a * power * b, slope, a_slope * power * b + a * power * (gamma * b * (q - p) / m - x)


def detached_focal(x: Real, alpha: Real, gamma: Real) -> tuple[Real, Real]:
    """α·p^γ·softplus(x), and its derivative with α·p^γ held."""
    p = sigmoid(x)
    weight = alpha * p**gamma
    return weight * softplus(x), weight * p


def soft_target(x: Real, t: Real) -> tuple[Real, Real]:
    """Binary cross-entropy of a logit with a target in [0, 1], and its derivative."""
    value, slope, _ = bce_with_logits(x, t)
    return value, slope


def varifocal(x: Real, t: Real, alpha: Real, gamma: Real) -> Slopes:
    """t·BCE(x, t) for a quality t > 0, α·p^γ·softplus(x) for t = 0; weights are held."""
    if t > 0:
        value, slope = soft_target(x, t)
        return t * value, t * slope, ZERO
    value, slope = detached_focal(x, alpha, gamma)
    return value, slope, ZERO


class Softmax:
    """A row's softmax: terms relative to the largest, and for every class the sum of all others, which cancels nothing.

    Attributes:
        terms: e^(x_j − m) with m the largest logit.
        total: their sum.
        others: for every class the sum of the terms of the others.
    """

    def __init__(self, logits: list[Real]) -> None:
        self.logits = logits
        self.largest = max(logits)
        self.terms = [exp(x - self.largest) for x in logits]
        self.total = gmpy2.fsum(self.terms)
        self.others = without_each(self.terms)
        self._top = logits.index(self.largest)
        self._log_total = log1p(self.others[self._top])

    def likelihood(self, j: int) -> Real:
        """−log p_j = lse − x_j."""
        return self._log_total + (self.largest - self.logits[j])

    def lse(self) -> Real:
        """log Σ e^x."""
        return self.largest + self._log_total

    def of_label(self, label: int) -> tuple[Real, list[Real]]:
        """−log p of a label and its gradient p − onehot."""
        factor = 1 / self.total
        gradient = [term * factor for term in self.terms]
        gradient[label] = -self.others[label] * factor
        return self.likelihood(label), gradient

    def of_distribution(self, q: list[Real]) -> tuple[Real, list[Real]]:
        """Σ q·(lse − x) and its gradient Q·p − q, as (Q − q)·p − q·(1 − p)."""
        rest = without_each(q)
        gradient = [
            (others_q * term - each * others) / self.total
            for others_q, term, each, others in zip(rest, self.terms, q, self.others, strict=True)
        ]
        return gmpy2.fsum([each * self.likelihood(j) for j, each in enumerate(q) if each != 0]), gradient


def without_each(values: list[Real]) -> list[Real]:
    """The sum of all values but one, for each of them."""
    before, after = [ZERO], [ZERO]
    for value in values[:-1]:
        before.append(before[-1] + value)
    for value in values[:0:-1]:
        after.append(after[-1] + value)
    return [a + b for a, b in zip(before, reversed(after), strict=True)]


def smoothed(t: list[Real], weight: list[Real] | None, smoothing: Real) -> list[Real]:
    """q = w·((1 − ε)·t + ε/C)."""
    if smoothing != 0:
        t = [(1 - smoothing) * each + smoothing / len(t) for each in t]
    return t if weight is None else [w * each for w, each in zip(weight, t, strict=True)]
