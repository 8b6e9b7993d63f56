"""Dice loss where its derivatives cross zero, and where its sums want more than 53 bits."""

from fractions import Fraction

import ml_dtypes
import mpmath
import numpy as np
import pytest

import refloss
from refloss.cases.source import DTYPES
from tests.truth import pairs, ulp_errors

PRECISION_BITS = 1200
THIRD = 1 / 3


def dice(x, t, by=1):
    """A mask's loss, and the derivatives of by times that for its logits and its targets; from the definition."""
    x, t = ([mpmath.mpf(float(value)) for value in values] for values in (x, t))
    p = [1 / (1 + mpmath.exp(-value)) for value in x]
    bottom = sum(p) + sum(t) + 1
    loss = 1 - (2 * sum(a * b for a, b in zip(p, t, strict=True)) + 1) / bottom
    of_logits = [by * (1 - loss - 2 * b) / bottom * a * (1 - a) for a, b in zip(p, t, strict=True)]
    return loss, of_logits, [by * (1 - loss - 2 * a) / bottom for a in p]


def masks(dtype, kind, size, generator):
    """A mask; "crossing": the last target and the first logit are where derivatives are next to 0."""
    x = (generator.standard_normal(size) * generator.choice([0.1, 3.0, 40.0], size)).astype(dtype)
    t = (generator.random(size) if kind != "hard" else generator.random(size) < 0.5).astype(dtype)
    if kind == "crossing":
        half = (1 - dice(x, t)[0]) / 2
        x[0] = dtype(float(mpmath.log(half / (1 - half))))
        t[-1] = dtype(float((1 - dice(x, t)[0]) / 2))
    return x, t


@pytest.mark.parametrize("kind", ["hard", "soft", "crossing"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients_are_those_of_the_definition(dtype, kind):
    generator = np.random.default_rng(5)
    for size in (1, 2, 7, 60) * 4:
        by, boxes = float(generator.choice([THIRD, 0.1, -0.7])), float(generator.choice([1.0, 3.0, 7.0]))
        with mpmath.workprec(PRECISION_BITS):
            x, t = masks(DTYPES[dtype], kind, size, generator)
            loss, *derivatives = dice(x, t, mpmath.mpf(by) / mpmath.mpf(boxes))
            result = refloss.dice(x[None], t[None], boxes, grad_output=by)
            assert ulp_errors(result.intermediates["losses"], pairs([loss]), "float64").max() <= 1
            for name, true in zip(("inputs", "targets"), derivatives, strict=True):
                if dtype != "float64":
                    assert ulp_errors(result.grads[name], pairs([true]), dtype).max() <= 0.501
                    continue
                # Of 1 − ℓ and of what is subtracted from it, that is, of some four of the numbers below.
                p = [1 / (1 + mpmath.exp(-mpmath.mpf(float(value)))) for value in x]
                flat = [a * (1 - a) for a in p] if name == "inputs" else [1] * size
                whole = 1 + sum(p) + mpmath.fsum(map(float, t))
                size_of = [abs(mpmath.mpf(by) / boxes) * 3 * f / whole for f in flat]
                errors = [abs(mpmath.mpf(g) - e) for g, e in zip(result.grads[name][0].tolist(), true, strict=True)]
                assert all(error <= 2.0**-51 * most for error, most in zip(errors, size_of, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_a_derivative_is_zero(dtype):
    """Logits of 0, or of both signs, that make 1 − ℓ twice the target, or twice the probability."""
    kind = DTYPES[dtype]
    # D = n/2 + Σ t + 1 and S = n/2: 1 − ℓ = 1/2 for n/2 = Σ t + 1.
    x, t = np.zeros((1, 4), kind), np.array([[0.25, 0.25, 0.25, 0.25]], kind)
    for by in (1.0, THIRD, 1e-3):
        result = refloss.dice(x, t, 3.0, grad_output=by)
        assert not result.grads["inputs"].astype(float).any()
        assert not np.signbit(result.grads["inputs"].astype(float)).any()
    # The same with probabilities that sum to 2 without being 1/2.
    x = np.array([[3.0, -3.0, 1.5, -1.5]], kind)
    assert not refloss.dice(x, t, 3.0, grad_output=THIRD).grads["inputs"].astype(float).any()
    # A target's derivative comes close: p = 1/2 wants a loss of 0, which such an element rules out.
    x, t = np.array([[0.0, 1e4, -1e4]], kind), np.array([[0.0, 1.0, 0.0]], kind)
    with mpmath.workprec(PRECISION_BITS):
        true = dice(x[0], t[0], mpmath.mpf(THIRD))
    result = refloss.dice(x, t, grad_output=THIRD)
    assert ulp_errors(result.grads["targets"], pairs([true[2]]), dtype).max() <= (2 if dtype == "float64" else 0.501)


def test_coefficients_are_not_rounded_on_the_way():
    """The gradient of a target of a sure logit is c·(1 − ℓ − 2)/D, a fraction: on ties of bfloat16 and beside them."""
    for by, boxes in ((257.0, 3.0), (771.0, 3.0), (515.0, 6.0), (THIRD, 1.0), (0.1, 7.0), (1e-30, 1e-25)):
        x, t = np.full((1, 1), 1e4, ml_dtypes.bfloat16), np.ones((1, 1), ml_dtypes.bfloat16)
        result = refloss.dice(x, t, boxes, grad_output=by)
        exact = Fraction(by) / Fraction(boxes) * -Fraction(1, 3)
        assert float(result.grads["targets"][0, 0]) == _bfloat16(exact), (by, boxes)


def _bfloat16(value):
    """The nearest of its numbers, by fractions: 8 bits."""
    exponent = int(np.floor(np.log2(float(abs(value))))) - 7
    return float(round(value / Fraction(2) ** exponent) * Fraction(2) ** exponent)


def test_what_is_asked_for_changes_nothing():
    generator = np.random.default_rng(0)
    x, t = generator.standard_normal((3, 50)).astype(np.float32), generator.random((3, 50)).astype(np.float32)
    both = refloss.dice(x, t, reduction="none", grad_output=[1.0, THIRD, np.nan])
    for name in ("inputs", "targets"):
        alone = refloss.dice(x, t, reduction="none", grad_output=[1.0, THIRD, np.nan], grad=name)
        assert alone.grads[name].tobytes() == both.grads[name].tobytes()
        assert np.array_equal(alone.loss, both.loss)
    assert np.isnan(both.grads["inputs"][2]).all()
    assert refloss.dice(x[:0], t[:0], reduction="none").grads["inputs"].shape == (0, 50)
