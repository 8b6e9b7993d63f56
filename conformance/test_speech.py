"""CTC against torch's and transformers', in float64 and as people train."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn import functional

import refloss
from conformance.call import array
from conformance.cases import Case
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from conformance.operators import operator, samples
from conformance.speech_cases import CASES

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = [
    (case, dtype)
    for case, dtype in product(CASES, (torch.float32, torch.bfloat16, torch.float16))
    if case.loss != "ctc" or dtype == torch.float32  # torch has no other
]


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    assert_formula(case)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    """And wrong answers fail."""
    assert_as_shipped(case, dtype, telling=True)


def _samples(dtype: torch.dtype) -> Iterator[Case]:
    """PyTorch's own sample inputs."""
    names = ("targets", "input_lengths", "target_lengths")
    for number, sample in enumerate(samples(operator("ctc_loss"), dtype)):
        given = dict(zip(names, sample.args, strict=False)) | sample.kwargs
        inputs = {"log_probs": array(sample.input)}
        inputs |= {name: np.asarray(given.pop(name)) for name in names}
        shape = sample.input.shape[1:2] if given.get("reduction") == "none" else ()
        cotangent = np.random.default_rng(number).standard_normal(shape) if shape else -3.5
        yield Case(f"ctc-sample-{number}", "ctc", inputs, given, cotangent)


SAMPLES = [(case, dtype) for dtype in (torch.float64, torch.float32) for case in _samples(dtype)]


@pytest.mark.parametrize(("case", "dtype"), SAMPLES, ids=identifier)
def test_sample(case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        assert_formula(case)
    else:
        assert_as_shipped(case, dtype)


def test_samples_are_all_there() -> None:
    assert len(SAMPLES) == 2 * 12


def test_the_gradient_of_log_probs_is_that_of_logits_in_front_of_them() -> None:
    """Torch's −γ is nowhere: autograd of log_softmax subtracts nothing from e^lp − γ, whose sum is 0."""
    logits = torch.randn(7, 1, 4, dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    lengths = torch.tensor([7]), torch.tensor([2])
    loss = functional.ctc_loss(log_probs, torch.tensor([[1, 2]]), *lengths, reduction="sum")
    (of_logits,) = torch.autograd.grad(loss, logits)
    ours = refloss.ctc(log_probs.detach(), [[1, 2]], [7], [2], reduction="sum").grads["log_probs"]
    np.testing.assert_allclose(ours, of_logits.numpy(), rtol=1e-12, atol=1e-14)


def test_frames_beyond_a_length_are_not_looked_at() -> None:
    log_probs = torch.randn(7, 2, 4).log_softmax(-1)
    log_probs[5:, 1] = torch.nan
    arguments = torch.tensor([[1, 2], [3, 1]]), torch.tensor([7, 5]), torch.tensor([2, 2])
    theirs = log_probs.clone().requires_grad_()
    functional.ctc_loss(theirs, *arguments).backward()  # type: ignore[no-untyped-call]
    ours = refloss.ctc(log_probs, *arguments).grads["log_probs"]
    assert not ours[5:, 1].any()
    assert theirs.grad is not None
    assert not theirs.grad[5:, 1].any()


def test_a_log_probability_below_the_least_is_none_here() -> None:
    """torch adds it up as a number; below −2^40 refloss takes it for impossible."""
    log_probs = torch.full((1, 1, 2), -1.5e12, dtype=torch.float64)
    given = torch.tensor([[1]]), torch.tensor([1]), torch.tensor([1])
    assert functional.ctc_loss(log_probs, *given, reduction="sum") == 1.5e12
    assert refloss.ctc(log_probs, *given, reduction="sum").loss == np.inf
    assert refloss.ctc(log_probs / 2, *given, reduction="sum").loss == 0.75e12
