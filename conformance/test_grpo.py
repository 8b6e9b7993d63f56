"""A few steps of the run by GRPO: refloss's curve is torch's in float64, and rewards rise."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from rich.console import Console

import refloss
from conformance import grpo
from conformance.training import new_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STEPS = 10
# Of the loss, a mean of numbers near 1 that cancel, between models whose gradients agree but for a rare last bit.
TOLERANCE = 2.0**-44


@pytest.fixture(scope="module")
def curves() -> Iterator[dict[str, grpo.Curve]]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield grpo.run(STEPS, Console(quiet=True))
    torch.use_deterministic_algorithms(deterministic)


def test_rewards_rise(curves: dict[str, grpo.Curve]) -> None:
    rewards = curves["refloss"].rewards
    assert rewards[0] < 0.08
    assert np.mean(rewards[-3:]) > 0.15


def test_the_curve_is_that_of_float64(curves: dict[str, grpo.Curve]) -> None:
    ours, theirs = curves["refloss"], curves["torch in float64"]
    assert grpo.same_texts(ours, theirs) == STEPS
    assert ours.rewards == theirs.rewards
    assert grpo.distance(ours, theirs).max() < TOLERANCE
    assert grpo.distance(ours, curves["torch in float32"]).max() > TOLERANCE


def test_a_wrong_normaliser_shows(curves: dict[str, grpo.Curve], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo, "POLICY", grpo.POLICY | {"aggregation": "token-mean"})
    wrong = grpo.train(grpo.RUNS["refloss"], 2, lambda: None)
    assert np.abs(np.subtract(wrong.losses, curves["torch in float64"].losses[:4])).max() > 1e-6


def test_ratios_are_not_one(curves: dict[str, grpo.Curve]) -> None:
    """The second update of a step is off its own policy; at the first the advantages of a group cancel."""
    losses = np.abs(curves["refloss"].losses[2:]).reshape(-1, 2)
    assert np.all(losses[:, 1] > losses[:, 0])


@pytest.mark.parametrize("factor", [-3.5, 0.25])
def test_gradients_honour_what_comes_from_above(factor: float) -> None:
    model = new_model(len(grpo.ALPHABET), grpo.LENGTH + 1, 64)
    texts = grpo.sampled(model, torch.Generator().manual_seed(1))
    found = []
    for maths in (grpo.RUNS["refloss"], grpo.RUNS["torch in float64"]):
        model.zero_grad()
        torch.autograd.backward(factor * grpo.log_probs_of(maths, model, texts)[texts.mask].square().sum())
        assert model.lm_head.weight.grad is not None
        found.append(model.lm_head.weight.grad.numpy().copy())
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2.0**-22 * np.abs(found[1]).max())


def test_the_picture_is_the_same_again(curves: dict[str, grpo.Curve], tmp_path: Path) -> None:
    for name in ("first", "second"):
        grpo.plot(curves, tmp_path / f"{name}.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_torch_functions_have_refloss_within() -> None:
    """What autograd finds through both functions is what refloss gives when it is called by hand."""
    random = np.random.default_rng(4)
    hidden = torch.tensor(random.standard_normal((3, 5, 8)), dtype=torch.float32, requires_grad=True)
    weight = torch.tensor(random.standard_normal((7, 8)), dtype=torch.float32, requires_grad=True)
    tokens = torch.tensor(random.integers(0, 7, (3, 5)))
    fixed: dict[str, Any] = {
        "old_log_probs": torch.full((3, 5), -2.0, dtype=torch.float64),
        "advantages": torch.tensor([1.0, -1.0, 2.0]),
    }
    of_tokens = partial(refloss.linear_selected_log_probs, hidden.detach(), weight.detach(), tokens)
    loss = grpo.Policy.apply(grpo.LogProbs.apply(hidden, weight, tokens), fixed)  # type: ignore[no-untyped-call]
    loss.backward()
    policy = refloss.policy_loss(of_tokens(grad=False).loss, **fixed)
    grads = of_tokens(grad_output=policy.grads["log_probs"]).grads
    assert loss.item() == policy.loss
    assert hidden.grad is not None
    assert weight.grad is not None
    assert np.array_equal(hidden.grad, grads["input"])
    assert np.array_equal(weight.grad, grads["linear_weight"])
