"""Focal and dice loss of resampled masks against their definition, pixel by pixel."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from refloss.cases.source import DTYPES
from refloss.kernels.masks.run import compare
from refloss.losses.parts import mask_focal
from tests.segmentation_truth import shares
from tests.truth import pairs, ulp_errors

PRECISION_BITS = 600
OF_FOCAL, OF_DICE = 1 / 700, 0.7


def masks(x, t):
    """The sum of focal losses, the dice loss, and the derivative of both with their cotangents; finite logits."""
    down, across = (shares(*sizes) for sizes in zip(x.shape, t.shape, strict=True))
    focal, gradient = mpmath.mpf(0), np.full(x.shape, mpmath.mpf(0), dtype=object)
    places = {
        (row, column): [(i, j, v * h) for i, v in down[row] for j, h in across[column]]
        for row, column in np.ndindex(t.shape)
    }
    logits = {key: sum(w * Fraction(float(x[i, j])) for i, j, w in near) for key, near in places.items()}
    p = {key: 1 / (1 + mpmath.exp(-mpmath.mpf(v.numerator) / v.denominator)) for key, v in logits.items()}
    bottom = sum(p.values()) + int(t.sum()) + 1
    dice = 1 - (2 * sum(p[key] * int(t[key]) for key in p) + 1) / bottom
    for key, near in places.items():
        q, yes = p[key], int(t[key])
        missed, weight = (1 - q, mpmath.mpf(1) / 4) if yes else (q, mpmath.mpf(3) / 4)
        loss, flat = -mpmath.log(1 - missed), q * (1 - q)
        focal += weight * missed**2 * loss
        slope = OF_FOCAL * weight * (missed**2 * (q - yes) + 2 * missed * loss * (1 - 2 * yes) * flat)
        slope += OF_DICE * flat * (1 - dice - 2 * yes) / bottom
        for i, j, share in near:
            gradient[i, j] += slope * share.numerator / share.denominator
    return focal, dice, gradient


def compared(x, t):
    """The losses and the gradient of one mask."""
    gradient = np.empty((1, *x.shape), x.dtype)
    rows = np.zeros(1, np.int64)
    of_focal, of_dice = (OF_FOCAL, 0.0), (OF_DICE, 0.0)
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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_without_a_share_are_not_looked_at(value):
    """A pixel that lies on the middle one of five logits."""
    x, t = np.full((5, 3), value), np.ones((1, 1), np.uint8)
    x[2, 1] = 0.25
    alone = compared(np.array([[0.25]]), t)
    for got, expected in zip(compared(x, t), alone, strict=True):
        assert np.sum(got) == np.sum(expected)
