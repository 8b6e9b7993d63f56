"""Divergences of two softmaxes against torch: the formula in float64, then as people train, and what trainers have.

torch has no such function; trainers write it of log_softmax and kl_div. Here a term whose probability is 0 is 0, which
most of them do not see to: their NaN is below, with what else they have of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

import refloss
from conformance.call import array
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate
from refloss.testing import check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case
    from refloss.losses.distillation import Divergence

FUNCTION = "distillation"
CASES = [case for case in cases_of(FUNCTION) if case.inputs["student_logits"].dtype == np.float64]
NAMES = ("student_logits", "teacher_logits")
TOLERANCE = 1e-11  # of the tensor's largest element
INFINITY = float("inf")


def weighed(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Σ p·log(p/q), without classes where p is 0: what is left out must not reach the backward pass either."""
    there = ~torch.isneginf(log_p)
    ratio = torch.where(there, log_p, 0.0) - torch.where(there, log_q, 0.0)
    return (torch.where(there, log_p, -INFINITY).exp() * ratio).sum(-1)


def mixture(log_s: torch.Tensor, log_t: torch.Tensor, beta: float) -> torch.Tensor:
    """log m, of classes that one of both has."""
    m = beta * log_t.exp() + (1.0 - beta) * log_s.exp()
    return torch.where(m > 0, torch.where(m > 0, m, 1.0).log(), -INFINITY)


def divergence_of(log_s: torch.Tensor, log_t: torch.Tensor, kind: str, beta: float) -> torch.Tensor:
    """Of each row, as a trainer writes it."""
    if kind == "forward_kl":
        return weighed(log_t, log_s)
    if kind == "reverse_kl":
        return weighed(log_s, log_t)
    if kind == "tvd":
        return 0.5 * (log_s.exp() - log_t.exp()).abs().sum(-1)
    log_m = mixture(log_s, log_t, beta)
    return beta * weighed(log_t, log_m) + (1.0 - beta) * weighed(log_s, log_m)


def losses_of(
    student: torch.Tensor,
    teacher: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    """The loss."""
    counts = torch.ones(student.shape[:-1], dtype=torch.bool) if mask is None else mask.bool()
    log_s, log_t = (log_softmax(logits[counts] / temperature, -1) for logits in (student, teacher))
    losses = divergence_of(log_s, log_t, divergence, beta) * (temperature**2 if temperature_squared else 1.0)
    if reduction == "none":
        return torch.zeros(student.shape[:-1], dtype=losses.dtype).masked_scatter(counts, losses)
    return losses.mean() if reduction == "mean" else losses.sum()


def run_torch(inputs: Mapping[str, Any], parameters: Mapping[str, Any], cotangent: Any) -> tuple[Any, ...]:
    """As refloss.testing.check calls a candidate, with torch's tensors."""
    student, teacher = (inputs[name].requires_grad_() for name in NAMES)
    loss = losses_of(student, teacher, inputs.get("mask"), **parameters)
    upstream = torch.as_tensor(cotangent, dtype=loss.dtype).expand(loss.shape)
    gradients = torch.autograd.grad(loss, (student, teacher), upstream)
    return loss, dict(zip(NAMES, gradients, strict=True))


def native(value: Any) -> Any:
    """A tensor of an array."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype.name == "bfloat16":
        return torch.tensor(value.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_formula(case: Case) -> None:
    loss, grads = run_torch(
        {name: torch.tensor(value) for name, value in case.inputs.items()}, case.parameters, case.grad_output
    )
    result = evaluate(case)
    for theirs, ours in [(loss, result.loss), *((grads[name], result.grads[name]) for name in NAMES)]:
        expected = array(theirs)
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * max(largest, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_shipped(dtype: str) -> None:
    """torch in a type that people train in, computed in it: every golden case."""
    judgement = check(run_torch, function=FUNCTION, dtypes=dtype, to_native=native, compute_dtype=dtype)
    assert [case.id for case in judgement.cases if not case.passed] == []


UNIFORM, FEWER = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[0.0, 0.0, -INFINITY, -INFINITY]]).double()


def test_an_infinite_divergence_has_torch_s_gradients() -> None:
    x, y = FEWER.clone().requires_grad_(), UNIFORM.clone().requires_grad_()
    of_both = torch.autograd.grad(losses_of(x, y), (x, y))
    ours = refloss.distillation(FEWER, UNIFORM)
    for name, theirs in zip(NAMES, of_both, strict=True):
        assert np.array_equal(ours.grads[name], array(theirs), equal_nan=True)


def _rows() -> list[torch.Tensor]:
    random = np.random.default_rng(61)
    return [torch.tensor(random.standard_normal((3, 4, 7)) * 2.0) for _ in NAMES]


def test_a_cross_entropy_is_no_divergence() -> None:
    """torchtune's ForwardKLLoss is −Σ t·log s: above the divergence by the teacher's entropy, with its gradient."""
    x, y = _rows()
    x.requires_grad_()
    log_t = log_softmax(y, -1)
    loss = -(log_t.exp() * log_softmax(x, -1)).sum(-1).mean()
    entropy = -(log_t.exp() * log_t).sum(-1).mean()
    ours = refloss.distillation(x.detach(), y)
    assert loss.item() == pytest.approx(float(ours.loss) + entropy.item(), rel=1e-13)
    (gradient,) = torch.autograd.grad(loss, x)
    np.testing.assert_allclose(ours.grads["student_logits"], array(gradient), rtol=0, atol=1e-15)


def test_a_mean_over_elements_is_smaller_by_the_vocabulary() -> None:
    """kl_div's own "mean", and TRL without labels before trl#4105."""
    x, y = _rows()
    with pytest.warns(UserWarning, match="'mean' divides"):
        loss = kl_div(log_softmax(x, -1), log_softmax(y, -1), reduction="mean", log_target=True)
    assert loss.item() * 7 == pytest.approx(float(refloss.distillation(x, y).loss), rel=1e-13)


def generalized_jsd(x: torch.Tensor, y: torch.Tensor, beta: float) -> float:
    """As TRL, Liger and ms-swift have it: whole divergences at the ends."""
    log_s, log_t = log_softmax(x, -1), log_softmax(y, -1)
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jsd")
    return divergence_of(log_s, log_t, kind, beta).mean().item()


def test_the_ends_of_a_generalized_jsd_are_jumps() -> None:
    x, y = _rows()
    ends: tuple[tuple[float, float, Divergence], ...]
    ends = (0.0, 1e-4, "forward_kl"), (1.0, 1.0 - 1e-4, "reverse_kl")
    for end, near, kind in ends:
        whole = generalized_jsd(x, y, end)
        assert whole == pytest.approx(float(refloss.distillation(x, y, divergence=kind).loss), rel=1e-13)
        beside = refloss.distillation(x, y, divergence="jsd", beta=near).loss
        assert generalized_jsd(x, y, near) == pytest.approx(float(beside), rel=1e-9)
        assert beside < 1e-3 * whole
        with pytest.raises(ValueError, match=kind):
            refloss.distillation(x, y, divergence="jsd", beta=end)


def test_logits_that_are_padded_with_zeros_have_a_share() -> None:
    """Liger pads a student's smaller vocabulary with zeros: classes of e⁰, where −inf has none."""
    x, y = _rows()
    padded = [torch.nn.functional.pad(x, (0, 3), value=value) for value in (0.0, -INFINITY)]
    taught = torch.nn.functional.pad(y, (0, 3), value=-INFINITY)
    with_zeros, right = (refloss.distillation(student, taught).loss for student in padded)
    assert right == pytest.approx(float(refloss.distillation(x, y).loss), rel=1e-15)
    assert with_zeros > right + 0.1
