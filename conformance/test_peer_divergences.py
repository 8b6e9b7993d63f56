"""Others' distillation losses against refloss, where they are installed: Liger-Kernel, TRL, torchtune, optax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import optax
import pytest
import torch

import refloss
from conformance.peer_losses import liger_jsd, torchtune_loss, trl_jsd
from conformance.test_peers import theirs_of

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.filterwarnings("ignore")


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(21)
    return tuple(torch.tensor(2 * each) for each in random.standard_normal((2, 4, 9)))  # type: ignore[return-value]


JSD = [(function, beta) for function in (liger_jsd, trl_jsd) for beta in (0.5, 0.1, 0.9)]


@pytest.mark.parametrize(("function", "beta"), JSD, ids=[f"{function.__name__}-{beta}" for function, beta in JSD])
def test_jsd(function: Callable[..., Any], beta: float) -> None:
    student, teacher = logits()
    theirs, gradient = theirs_of(function, student, teacher, beta=beta)
    ours = refloss.distillation(student, teacher, divergence="jsd", beta=beta)
    np.testing.assert_allclose(theirs, ours.loss, rtol=1e-12)
    np.testing.assert_allclose(gradient, ours.grads["student_logits"], rtol=0, atol=1e-13)


def test_the_temperature_of_trl() -> None:
    """Logits are divided by it, and the loss is not multiplied by its square."""
    student, teacher = logits()
    theirs, gradient = theirs_of(trl_jsd, student, teacher, beta=0.5, temperature=2.0)
    ours = refloss.distillation(student, teacher, divergence="jsd", temperature=2.0)
    np.testing.assert_allclose(theirs, ours.loss, rtol=1e-12)
    np.testing.assert_allclose(gradient, ours.grads["student_logits"], rtol=0, atol=1e-13)


def test_reverse_and_symmetric_kl_of_torchtune() -> None:
    """In float32, as it computes them."""
    student, teacher = logits()
    theirs, gradient = theirs_of(torchtune_loss("ReverseKLLoss"), student, teacher)
    ours = refloss.distillation(student, teacher, divergence="reverse_kl")
    np.testing.assert_allclose(theirs, ours.loss, rtol=1e-6)
    np.testing.assert_allclose(gradient, ours.grads["student_logits"], rtol=0, atol=1e-6)
    forward, _ = theirs_of(torchtune_loss("ForwardKLLoss"), student, teacher)
    symmetric, _ = theirs_of(torchtune_loss("SymmetricKLLoss"), student, teacher, sym_kd_ratio=0.25)
    np.testing.assert_allclose(symmetric, 0.25 * forward + 0.75 * theirs, rtol=1e-6)


def test_optax() -> None:
    """In float32, as JAX computes."""
    student, teacher = (each.float() for each in logits())
    log_q, p = torch.log_softmax(student, -1).numpy(), torch.softmax(teacher, -1).numpy()
    ours = refloss.distillation(student, teacher, reduction="none", grad=False).loss
    np.testing.assert_allclose(optax.losses.kl_divergence(log_q, p), ours, rtol=2e-6)
    targets = torch.log_softmax(teacher, -1).numpy()
    np.testing.assert_allclose(optax.losses.kl_divergence_with_log_targets(log_q, targets), ours, rtol=2e-6)
