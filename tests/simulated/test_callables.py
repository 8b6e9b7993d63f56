"""Judging what lives on a GPU: it is copied to the host."""

import numpy as np
import pytest

import refloss
from refloss.testing import MismatchError, assert_matches, check
from tests.simulated.test_arrays import LABELS, PRODUCERS, logits_of


@pytest.mark.parametrize("producer", PRODUCERS)
def test_a_result_on_a_gpu_and_a_candidate_there(producer):
    logits = logits_of()
    result = refloss.causal_lm(producer(logits), producer(LABELS), grad_output=-2.0)
    gradient = np.asarray(result.grads["logits"])
    assert_matches(result, loss=result.loss, grads={"logits": producer(gradient)})
    with pytest.raises(MismatchError):
        assert_matches(result, grads={"logits": producer(-gradient)})
    logits[1, 0] += 1.0
    with pytest.raises(ValueError, match="the inputs have changed"):
        assert_matches(result, grads={"logits": producer(gradient)})


def test_a_function_of_arrays_on_a_gpu():
    def fn(inputs, parameters, cotangent):
        result = refloss.causal_lm(**inputs, **parameters, grad_output=cotangent)
        return result.loss, result.grads

    check(fn, cases=["causal_lm-float32", "causal_lm-bfloat16"], to_native=PRODUCERS[1])
