"""Others' distillation from K classes against refloss, where they are installed: TRL's SDPO, verl."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

import refloss
from conformance.peer_losses import named, trl_topk, verl_topk
from conformance.test_peers import theirs_of

pytestmark = pytest.mark.filterwarnings("ignore")


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(22)
    return tuple(torch.tensor(2 * each) for each in random.standard_normal((2, 4, 9)))  # type: ignore[return-value]


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
