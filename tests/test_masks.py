"""Focal and dice loss of resampled masks against their definition, pixel by pixel."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from refloss.cases.source import DTYPES
from refloss.kernels.masks.run import compare
from refloss.losses.parts import mask_focal
from refloss.numerics.exact import as_pair
from tests.segmentation_truth import shares
from tests.truth import pairs, ulp_errors

PRECISION_BITS = 600
# Cotangents of the sum of focal losses and of the dice loss.
BOTH = (1 / 700, 0.7)


def masks(x, t, by=BOTH):
    """The sum of focal losses, the dice loss, and the derivative of both with their cotangents; finite logits."""
    down, across = (shares(*sizes) for sizes in zip(x.shape, t.shape, strict=True))
    of_focal, of_dice = (mpmath.mpf(value.numerator) / value.denominator for value in map(Fraction, by))
    focal, gradient = mpmath.mpf(0), np.full(x.shape, mpmath.mpf(0), dtype=object)
    places = {
        (row, column): [(i, j, v * h) for i, v in down[row] for j, h in across[column]]
        for row, column in np.ndindex(t.shape)
    }
    logits = {key: sum(w * Fraction(float(x[i, j])) for i, j, w in near) for key, near in places.items()}
    p = {key: 1 / (1 + mpmath.exp(-mpmath.mpf(v.numerator) / v.denominator)) for key, v in logits.items()}
    wanted = {key: mpmath.mpf(float(t[key])) for key in p}
    bottom = sum(p.values()) + sum(wanted.values()) + 1
    dice = 1 - (2 * sum(p[key] * wanted[key] for key in p) + 1) / bottom
    for key, near in places.items():
        q, yes = p[key], wanted[key]
        missed, weight = q * (1 - yes) + (1 - q) * yes, yes / 4 + 3 * (1 - yes) / 4
        loss, flat = -yes * mpmath.log(q) - (1 - yes) * mpmath.log(1 - q), q * (1 - q)
        focal += weight * missed**2 * loss
        slope = of_focal * weight * (missed**2 * (q - yes) + 2 * missed * loss * (1 - 2 * yes) * flat)
        slope += of_dice * flat * (1 - dice - 2 * yes) / bottom
        for i, j, share in near:
            gradient[i, j] += slope * share.numerator / share.denominator
    return focal, dice, gradient


def compared(x, t, by=BOTH, dtype=None):
    """The losses and the gradient of one mask."""
    gradient = np.empty((1, *x.shape), dtype or x.dtype)
    rows = np.zeros(1, np.int64)
    of_focal, of_dice = map(as_pair, map(Fraction, by))
    losses = compare(
        mask_focal.LOOP, x[None], gradient, rows, t[None], of_focal=of_focal, of_dice=of_dice, backend="cpu"
    )
    return float(losses.focal[0]), losses.dice[0], gradient[0]


@pytest.mark.parametrize("size", [(7, 9), (3, 2), (4, 5), (1, 1), (13, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients_are_those_of_the_definition(dtype, size):
    generator = np.random.default_rng(0)
    for scale in (0.5, 3.0, 30.0):
        x = (scale * generator.standard_normal((4, 5))).astype(DTYPES[dtype])
        t = (generator.random(size) < 0.4).astype(np.uint8)
        focal, dice, gradient = compared(x, t)
        with mpmath.workprec(PRECISION_BITS):
            true = masks(x, t)
            assert ulp_errors([focal, dice], pairs(true[:2]), "float64").max() <= 2
            if dtype != "float64":
                assert ulp_errors(gradient, pairs(true[2]), dtype).max() <= 0.501


@pytest.mark.parametrize("by", [BOTH, (0.3, 1e6)], ids=["plain", "again"])
def test_targets_of_0_and_1_are_those_whatever_their_type(by):
    """Some elements of the second kind are computed again, from the targets of their pixels."""
    generator = np.random.default_rng(1)
    x = (3 * generator.standard_normal((9, 11))).astype(np.float32)
    t = (generator.random((30, 40)) < 0.3).astype(np.uint8)
    whole, fractions = compared(x, t, by), compared(x, t.astype(np.float64), by)
    assert whole[:2] == fractions[:2]
    assert whole[2].tobytes() == fractions[2].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_without_a_share_are_not_looked_at(value):
    """A pixel that lies on the middle one of five logits."""
    x, t = np.full((5, 3), value), np.ones((1, 1), np.uint8)
    x[2, 1] = 0.25
    alone = compared(np.array([[0.25]]), t)
    for got, expected in zip(compared(x, t), alone, strict=True):
        assert np.sum(got) == np.sum(expected)


@pytest.mark.parametrize("by", [Fraction(1, 3), 0.1, Fraction(-1, 7)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pixels_in_balance_hand_nothing_back(dtype, by):
    """Of n pixels of one logit, k are wanted, and n = 2k² + 2k: 1 − ℓ = 2k/n, whatever that logit is."""
    for size, k in (((2, 2), 1), ((3, 4), 2)):
        t = np.zeros(size, np.uint8)
        t.reshape(-1)[:k] = 1
        for logit in (0.0, 0.3, -2.7, 5.1, 0.001, -37.0):
            gradient = compared(np.array([[logit]]), t, (0, by), DTYPES[dtype])[2]
            assert gradient.item() == 0.0, (size, logit)
    for planes in (1, 2):
        halves = np.full((2 * planes, 3), 0.5)
        assert not compared(np.zeros((planes, planes)), halves, (by, 0), DTYPES[dtype])[2].any()


def crossing(t, by, generator):
    """Float64 logits at which an element's gradient has all but cancelled."""
    x, low, high = generator.standard_normal((2, 2)), -8.0, 8.0
    values = [compared(x + shift, t, by)[2][0, 1] for shift in (low, high)]
    if values[0] * values[1] > 0:
        return None
    for _ in range(70):
        middle = 0.5 * (low + high)
        value = compared(x + middle, t, by)[2][0, 1]
        low, high = (middle, high) if value * values[0] > 0 else (low, middle)
    return x + high


@pytest.mark.parametrize("by", [(0, Fraction(1, 3)), (Fraction(1, 70), 0), (Fraction(1, 630), 0.1)], ids=str)
@pytest.mark.parametrize("kind", ["whole", "fractions"])
def test_what_all_but_cancels_is_rounded_once(kind, by):
    generator = np.random.default_rng(3)
    found = 0
    for size in ((3, 3), (4, 4), (5, 2)) * 3:
        t = generator.random(size) ** 4 if kind == "fractions" else (generator.random(size) < 0.4).astype(np.uint8)
        x = crossing(t, by, generator)
        if x is None:
            continue
        found += 1
        with mpmath.workprec(PRECISION_BITS):
            true = pairs(masks(x, t, by)[2])
            for name in ("float32", "bfloat16", "float16"):
                assert ulp_errors(compared(x, t, by, DTYPES[name])[2], true, name).max() <= 0.501
    assert found >= 3


def test_small_targets_keep_their_digits():
    """1 − (1 − t) would be 0 or 2^-53."""
    for logit, target in ((-40.0, 1e-17), (-36.0, 3e-16), (-3.0, 1e-20), (40.0, 1e-17)):
        x, t = np.array([[logit]]), np.array([[target, 0.0]])
        focal, dice, gradient = compared(x, t, dtype=np.float32)
        with mpmath.workprec(PRECISION_BITS):
            true = masks(x, t)
            assert ulp_errors([focal, dice], pairs(true[:2]), "float64").max() <= 2
            assert ulp_errors(gradient, pairs(true[2]), "float32").max() <= 0.501
