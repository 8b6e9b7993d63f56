"""Others' distillation from K classes against refloss, where they are installed: TRL's SDPO, verl."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

import refloss
from conformance import peers
from conformance.test_peers import theirs_of

pytestmark = pytest.mark.filterwarnings("ignore")

K = 3


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(22)
    return tuple(torch.tensor(2 * each) for each in random.standard_normal((2, 4, 9)))  # type: ignore[return-value]


def named(by: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's log-probabilities of the K classes that somebody finds most probable, and those classes."""
    ids = torch.topk(by, K).indices
    return torch.log_softmax(teacher, -1).gather(-1, ids), ids


def trl_topk(student: Any, teacher: Any, *, tail: bool) -> Any:
    """Of the student's K most probable classes; an alpha of 0 is the forward KL."""
    function = peers.imported("trl.experimental.sdpo.loss_utils").compute_topk_self_distillation_loss
    return function(student, teacher, distillation_topk=K, distillation_alpha=0.0, distillation_add_tail=tail)


def verl_topk(student: Any, log_p: Any, ids: Any, *, chunked: bool = False, least: float | None = None) -> Any:
    """Of the classes that a teacher sends, as losses of tokens; in float32."""
    function = peers.imported("verl.trainer.distillation.fsdp.losses").compute_forward_kl_topk
    options = SimpleNamespace(use_chunked_topk=chunked, log_prob_min_clamp=least)
    nested = (torch.nested.as_nested_tensor([each], layout=torch.jagged) for each in (log_p, ids))
    return function(student[None], *nested, SimpleNamespace(distillation_loss=options), "thd")["distillation_losses"][0]


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_trl(tail: Literal["bucket", "renormalise"]) -> None:
    student, teacher = logits()
    theirs, gradient = theirs_of(trl_topk, student, teacher, tail=tail == "bucket")
    ours = refloss.topk_distillation(student, *named(student, teacher), tail=tail, reduction="none")
    np.testing.assert_allclose(theirs, ours.loss, rtol=1e-12)
    np.testing.assert_allclose(gradient, ours.grads["student_logits"], rtol=0, atol=1e-13)


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_verl(chunked: bool) -> None:
    student, teacher = logits()
    given = named(teacher, teacher)
    theirs, gradient = theirs_of(verl_topk, student, *given, chunked=chunked)
    ours = refloss.topk_distillation(student, *given, reduction="none")
    np.testing.assert_allclose(theirs, ours.loss, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient, ours.grads["student_logits"], rtol=0, atol=1e-6)


def test_divergence_of_the_bucket_of_trl() -> None:
    """What is outside the K classes counts as 1e-7 at least: a student that is sure of a wrong class learns nothing."""
    student = torch.tensor([[0.0, -40.0, -41.0, -42.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, -1.0, -2.0, 0.0]], dtype=torch.float64)
    theirs, gradient = theirs_of(trl_topk, student, teacher, tail=True)
    ours = refloss.topk_distillation(student, *named(student, teacher), tail="bucket", reduction="none")
    outside = 1 - torch.softmax(teacher, -1)[0, :K].sum().item()
    # log 1e-7 instead of log e^−42.
    np.testing.assert_allclose(ours.loss - theirs, outside * (42 + np.log(1e-7)), rtol=1e-6)
    assert abs(gradient[0, 3]) < 1e-16
    np.testing.assert_allclose(ours.grads["student_logits"][0, 3], -outside, rtol=1e-6)


def test_divergence_of_the_least_log_probability_of_verl() -> None:
    """−10 by default: a class that the student gives e^−12 has no gradient, whatever the teacher gives it."""
    student = torch.tensor([[0.0, -12.0, -30.0]], dtype=torch.float64)
    given = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log(), torch.tensor([[0, 1]])
    _, gradient = theirs_of(verl_topk, student, *given, least=-10.0)
    ours = refloss.topk_distillation(student, *given, reduction="none").grads["student_logits"]
    assert abs(gradient[0, 1]) < 1e-5
    np.testing.assert_allclose(ours[0, 1], -0.5, rtol=1e-4)
