"""Flow matching on a simulated GPU: weights beyond every range, and what is not finite."""

import numpy as np
import pytest

import refloss
from tests.cuda_cases import assert_same_result, golden_cases


@pytest.mark.parametrize("name", ["far", "undefined", "empty", "draws"])
def test_flow_has_the_cpu_s_bits(name):
    inputs = {key: np.array(value) for key, value in golden_cases()["pocket_tts-float64"].inputs.items()}
    if name == "far":
        inputs["jump_log_variance"][:3] = [900.0, -900.0, 5000.0]
        inputs["jump_velocity"][2] = inputs["end_velocity"][2] = inputs["jump_velocity_dt"][2] = 0.0
    if name == "undefined":
        inputs["velocity"][:3, 1] = [np.nan, np.inf, -np.inf]
        inputs["log_variance"][3:] = [np.nan, np.inf, -np.inf]
        inputs["end_times"][0] = np.inf
    if name == "empty":
        inputs = {key: value if key.startswith("eos") else value[:0] for key, value in inputs.items()}
    if name == "draws":
        inputs = dict(golden_cases()["pocket_tts-draws-that-cancel"].inputs)
    assert_same_result(*(refloss.pocket_tts(**inputs, grad_output=1 / 3, backend=to) for to in ("cuda", "cpu")))
