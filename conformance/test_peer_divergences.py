"""Others' distillation losses against refloss, where they are installed: Liger-Kernel, TRL, torchtune, optax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import optax
import pytest
import torch

import refloss
from conformance import peers
from conformance.test_peers import theirs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.losses.distillation import Divergence

pytestmark = pytest.mark.filterwarnings("ignore")


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(21)
    return tuple(torch.tensor(2 * each) for each in random.standard_normal((2, 4, 9)))  # type: ignore[return-value]


def liger_jsd(student: Any, teacher: Any, beta: float) -> Any:
    function = peers.imported("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction.distillation_loss_fn
    return function(student, teacher, beta=beta) / len(student)


def trl_jsd(student: Any, teacher: Any, beta: float, temperature: float = 1.0) -> Any:
    function = peers.imported("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    labels = torch.zeros(student.shape[:-1], dtype=torch.long)
    return function(student, teacher, labels=labels, beta=beta, temperature=temperature)


def torchtune_loss(name: str) -> Callable[..., Any]:
    def loss(student: Any, teacher: Any, **options: Any) -> Any:
        labels = torch.zeros(len(student), dtype=torch.long)
        return getattr(peers.torchtune("modules.loss.kd_losses"), name)(**options)(student, teacher, labels)

    return loss


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


@pytest.mark.parametrize("function", [liger_jsd, trl_jsd], ids=["liger", "trl"])
def test_divergence_of_jsd_at_its_ends(function: Callable[..., Any]) -> None:
    """It goes to 0 with beta, and is a whole divergence at 0; refloss has names for those and refuses 0 and 1."""
    student, teacher = logits()
    ends: dict[float, Divergence] = {0.0: "forward_kl", 1.0: "reverse_kl"}
    for beta, divergence in ends.items():
        theirs, _ = theirs_of(function, student, teacher, beta=beta)
        near, _ = theirs_of(function, student, teacher, beta=abs(beta - 1e-6))
        np.testing.assert_allclose(
            theirs, refloss.distillation(student, teacher, divergence=divergence).loss, rtol=1e-12
        )
        assert near < 1e-4 < theirs
        with pytest.raises(ValueError, match="beta"):
            refloss.distillation(student, teacher, divergence="jsd", beta=beta)


def test_divergence_of_forward_kl_of_torchtune() -> None:
    """It lacks the teacher's entropy, so that it is a cross-entropy; the gradient is that of the divergence."""
    student, teacher = logits()
    theirs, gradient = theirs_of(torchtune_loss("ForwardKLLoss"), student, teacher)
    ours = refloss.distillation(student, teacher)
    log_p = torch.log_softmax(teacher, -1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean().item()
    np.testing.assert_allclose(theirs, ours.loss + entropy, rtol=1e-6)
    np.testing.assert_allclose(gradient, ours.grads["student_logits"], rtol=0, atol=1e-7)


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


@pytest.mark.parametrize("function", [liger_jsd, trl_jsd], ids=["liger", "trl"])
def test_divergence_of_a_class_that_a_teacher_masks(function: Callable[..., Any]) -> None:
    """0·(−inf − …) is NaN; the exact divergence is finite, and so are its gradients."""
    student, teacher = logits()
    teacher[0, 2] = -torch.inf
    theirs, _ = theirs_of(function, student, teacher, beta=0.5)
    assert np.isnan(theirs)
    ours = refloss.distillation(student, teacher, divergence="jsd")
    assert np.isfinite(ours.loss)
    assert all(np.isfinite(gradient).all() for gradient in ours.grads.values())
