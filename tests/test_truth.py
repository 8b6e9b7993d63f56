"""The yardstick itself: a wrong ulp would make every other test agree with anything."""

import mpmath
import numpy as np
import pytest

from tests.truth import FORMATS, cross_entropy_row, pairs, ulp_errors


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ulp_errors_count_representable_steps(dtype):
    value = np.array([1.0, 1.5, -3.7, 1e-30, 2.0 ** FORMATS[dtype].smallest_exponent], dtype)
    true = pairs([mpmath.mpf(float(v)) for v in value])
    assert np.all(ulp_errors(value, true, dtype) == 0)
    assert np.all(ulp_errors(np.nextafter(value, np.inf, dtype=dtype), true, dtype) == 1)


def test_ulp_errors_of_subnormals_use_the_smallest_unit():
    true = pairs([mpmath.mpf(3) * mpmath.mpf(2) ** -150])
    assert ulp_errors(np.float32([2.0**-149]), true, "float32") == 0.5
    assert ulp_errors(np.float32([0.0]), true, "float32") == 1.5


def test_a_pair_holds_what_float64_cannot():
    third = mpmath.mpf(1) / 3
    with mpmath.workprec(200):
        third = mpmath.mpf(1) / 3
        true = pairs([third])
    error = ulp_errors(np.array([1 / 3]), true, "float64")[0]
    assert 0.3 < error < 0.34


def test_truth_of_two_classes_is_the_logistic_function():
    with mpmath.workprec(200):
        truth = cross_entropy_row(np.array([0.0, 80.0]), 1)
        assert mpmath.almosteq(truth.loss, mpmath.log1p(mpmath.exp(-80)), 1e-50)
        assert mpmath.almosteq(truth.gradient[1], -1 / (1 + mpmath.exp(80)), 1e-50)
