"""Softmax terms below e^-708 of the largest, in float64, where a large factor lifts them back into range.

Such a term is a subnormal number, or 0: it is off by up to 2^-1074, and what is made of it by that times its factor.
docs/numerics.md states it as a limit; here is what holds beside it, by MPFR.
"""

import gmpy2
import numpy as np
import pytest

import refloss
from tests.mpfr.definitions import sigmoid
from tests.mpfr.rounding import PRECISION, real

FACTOR = 1e300
FAR = np.array([0.0, -1.0, -700.0, -707.5, -720.0, -730.5, -744.7, -800.0, -1000.0])
SPREAD = np.concatenate([FAR, np.full(300, -1.0)])


CALLS = {
    "labels": lambda x: refloss.cross_entropy(x[None], [0], grad_output=FACTOR).grads["logits"],
    "weights": lambda x: refloss.cross_entropy(x[None], [0], np.full(x.size, FACTOR), reduction="sum").grads["logits"],
    "probabilities": lambda x: refloss.cross_entropy(x[None], np.eye(1, x.size), grad_output=FACTOR).grads["logits"],
    "a chain": lambda x: refloss.cross_entropy(x[None] / 2, [0], temperature=0.5, grad_output=FACTOR / 2).grads[
        "logits"
    ],
    "log-probabilities": lambda x: refloss.selected_log_probs(x[None], [0], grad_output=-FACTOR).grads["logits"],
    "a linear layer": lambda x: refloss.linear_cross_entropy(
        np.ones((1, 1)), x[:, None], [0], grad_output=FACTOR
    ).grads["linear_weight"],
}


def assert_close(found, exact):
    """Within 2 ulp where terms are normal numbers; else off by what a subnormal term is, times its factor."""
    for value, true in zip(np.ravel(found), exact, strict=True):
        allowed = 2 * np.spacing(abs(float(true))) + FACTOR * 2.0**-1073
        assert abs(real(float(value)) - true) <= real(float(allowed))


@pytest.mark.parametrize("x", [FAR, SPREAD], ids=["few", "many"])
@pytest.mark.parametrize("name", CALLS)
def test_rows(name, x):
    found = CALLS[name](x)
    with gmpy2.context(precision=PRECISION):
        terms = [gmpy2.exp(real(float(value))) for value in x]
        total = sum(terms)
        exact = [real(FACTOR) * (term / total - (j == 0)) for j, term in enumerate(terms)]
        assert_close(found, exact)


def test_elements():
    x = FAR[2:]
    with gmpy2.context(precision=PRECISION):
        exact = [real(FACTOR) * sigmoid(real(float(value))) for value in x]
        found = refloss.bce_with_logits(x, np.zeros(x.size), reduction="sum", grad_output=FACTOR).grads["logits"]
        assert_close(found, exact)
