"""Policy and value losses against the same formulas in torch: whatever is drawn, golden cases, and kinks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance.comparison import FORMULA_TOLERANCE, scale
from conformance.policies import FORMULAS, run_torch
from conformance.test_log_probs import host, native
from refloss.cases.draws import Limits
from refloss.golden.corpus import cases_of
from refloss.golden.drawn import seeded
from refloss.golden.store import evaluate
from refloss.registry import FUNCTIONS
from refloss.testing import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case

LIMITS = Limits(("float64",), max_rows=5, max_classes=6, extreme=False, exact=True)
SEEDS = range(3)


def cases() -> Iterator[Case]:
    for name in FORMULAS:
        for seed in SEEDS:
            yield from seeded(FUNCTIONS[name], LIMITS, seed)
        yield from (case for case in cases_of(name) if {v.dtype for v in case.inputs.values()} <= _WIDE)


_WIDE = {np.dtype(np.float64), np.dtype(bool)}


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.id)
def test_formula(case: Case) -> None:
    inputs = {name: native(value) for name, value in case.inputs.items()}
    loss, grads = run_torch(case.function, inputs, case.parameters, native(case.grad_output))
    result = evaluate(case)
    for theirs, ours in ((loss, result.loss), *((grads[name], result.grads[name]) for name in grads)):
        expected = host(theirs)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=FORMULA_TOLERANCE * scale(expected))


@pytest.mark.parametrize("name", FORMULAS)
def test_as_shipped(name: str) -> None:
    """torch in float32: every golden case of it."""
    candidate = partial(run_torch, name)
    judgement = check(candidate, function=name, dtypes="float32", to_native=native, compute_dtype="float32")
    assert all(case.passed for case in judgement.cases)


def gradients(keywords: dict[str, Any], log_ratios: list[float], advantages: list[float]) -> tuple[np.ndarray, ...]:
    """Those of both sides, of tokens that were log 1/2 before; twice a ratio is exact."""
    before = np.full((1, len(log_ratios)), -0.5)
    given: dict[str, Any] = {
        "log_probs": before + log_ratios,
        "old_log_probs": before,
        "advantages": np.asarray([advantages]),
        "ref_log_probs": before - 0.25,
    }
    _, theirs = run_torch("policy_loss", {k: torch.tensor(v) for k, v in given.items()}, keywords, 1.0)
    return refloss.policy_loss(**given, **keywords).grads["log_probs"], host(theirs["log_probs"])


@pytest.mark.parametrize(
    "keywords",
    [
        {"clip_low": 0.0},
        {"clip_low": 0.0, "ratio": "sequence"},
        {"clip_low": 0.0, "objective": "cispo"},
        {"clip_low": 0.0, "clip_high": 0.5},
        {"clip_low": 0.5, "clip_high": 0.0},
        {"dual_clip": 1.0},
        {"clip_low": 0.0, "dual_clip": 1.0},
    ],
    ids=str,
)
def test_kinks(keywords: dict[str, Any]) -> None:
    """A ratio of exactly 1 at a bound of 1, with advantages of either sign and of 0."""
    ours, theirs = gradients(keywords, [0.0, 0.0, 0.0], [1.5, -2.0, 0.0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-15)


@pytest.mark.parametrize("estimate", ["k1", "k2", "k3"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_slope_passes_through_the_ratio_of_the_kl(estimate: str, ratio: str) -> None:
    keywords = {"kl": estimate, "kl_coef": 0.5, "kl_ratio_weighted": True, "ratio": ratio}
    ours, theirs = gradients(keywords, [0.3, -0.7, 0.01], [1.5, -2.0, 0.0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)
    held, _ = gradients({**keywords, "kl_ratio_weighted": False}, [0.3, -0.7, 0.01], [1.5, -2.0, 0.0])
    assert np.abs(ours - held).max() > 1e-3


@pytest.mark.parametrize("trainer", refloss.POLICY_PRESETS)
def test_presets_are_keywords(trainer: str) -> None:
    keywords = refloss.POLICY_PRESETS[trainer]
    ours, theirs = gradients(dict(keywords), [0.3, -0.7, 0.01], [1.5, -2.0, 0.0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-13)
    with pytest.raises(TypeError):
        keywords["clip_low"] = 0.3  # type: ignore[index]
