"""The loss of Pocket TTS in mpmath, from its definition."""

from typing import Any

import mpmath
import numpy as np

from tests.detection_truth import softplus


def numbers(array: Any) -> np.ndarray:
    """An array of mpmath numbers."""
    values = np.asarray(array, np.float64)
    return np.array([mpmath.mpf(value) for value in values.ravel().tolist()], object).reshape(values.shape)


def _term(residual: np.ndarray, w: np.ndarray) -> Any:
    lengths = (residual**2).sum(axis=1) / residual.shape[1]
    return sum(length * mpmath.exp(each) - each for length, each in zip(lengths, w, strict=True)) / len(w)


def pocket_tts(
    inputs: dict[str, np.ndarray], diagonal: float = 0.75, probability: float = 0.25, eos_weight: float = 0.1
) -> Any:
    """The total; inputs are arrays of mpmath numbers, and labels."""
    samples = len(inputs["velocity"]) // len(inputs["targets"])
    data = np.concatenate([inputs["targets"]] * samples)
    total = mpmath.mpf(diagonal) * _term(inputs["velocity"] - (data - inputs["noise"]), inputs["log_variance"])
    if "jump_velocity" in inputs:
        step = (inputs["end_times"] - inputs["start_times"])[:, None]
        residual = inputs["jump_velocity"] + step * inputs["jump_velocity_dt"] - inputs["end_velocity"]
        weight = (1 - mpmath.mpf(diagonal)) / mpmath.mpf(probability)
        total += weight * _term(residual, inputs["jump_log_variance"])
    ends = zip(inputs["eos_logits"].ravel(), inputs["eos_labels"].ravel(), strict=True)
    losses = [softplus(-x if ends_here else x) for x, ends_here in ends]
    return total + mpmath.mpf(eos_weight) * sum(losses) / len(losses)
