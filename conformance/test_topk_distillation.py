"""Distillation from K classes against torch: the formulas in float64, then as people train, and what trainers have.

torch has no such function; trainers write it of log_softmax and gather.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance.test_log_probs import host, native
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate
from refloss.testing import check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case

FUNCTION = "topk_distillation"
CASES = [case for case in cases_of(FUNCTION) if case.inputs["student_logits"].dtype == np.float64]
TOLERANCE = 1e-12  # of the tensor's largest element


def losses_of(y: torch.Tensor, log_p: torch.Tensor, ids: torch.Tensor, tail: str) -> torch.Tensor:
    """Of rows of logits over a temperature; places whose log-probability is −inf name nothing."""
    named = ~torch.isneginf(log_p)
    is_named = torch.zeros(y.shape).scatter_add(-1, torch.where(named, ids, 0), named.float()) > 0
    if tail == "renormalise":
        y = torch.where(is_named, y, -torch.inf)
        log_p = log_p - torch.logsumexp(log_p, -1, keepdim=True)
    everything = torch.log_softmax(y, -1)
    log_q = everything.gather(-1, torch.where(named, ids, 0))
    p = torch.where(named, log_p, 0.0).exp() * named
    losses = torch.where(named, p * (torch.where(named, log_p, 0.0) - log_q), 0.0).sum(-1)
    if tail != "bucket":
        return losses
    others = torch.where(is_named, -torch.inf, everything)
    outside = 1 - p.sum(-1)
    there = (outside > 0) & ~torch.isneginf(others).all(-1)
    log_outside = torch.logsumexp(torch.where(there[..., None], others, 0.0), -1)
    outside = torch.where(there, outside, 1.0)
    return losses + torch.where(there, outside * (outside.log() - log_outside), 0.0)


def run_torch(inputs: Mapping[str, Any], parameters: Mapping[str, Any], cotangent: Any) -> tuple[Any, ...]:
    """As refloss.testing.check calls a candidate, with torch's tensors."""
    tensors, options = dict(inputs), dict(parameters)
    logits, log_p = tensors["student_logits"].requires_grad_(), tensors["teacher_log_probs"].to(logits_type(inputs))
    counts = tensors.get("mask", torch.ones(logits.shape[:-1])).bool()
    there = counts & ~torch.isneginf(log_p).all(-1)
    temperature = options.get("temperature", 1.0)
    y = torch.where(there[..., None], logits, 0.0) / temperature
    log_p = torch.where(there[..., None], log_p, -1.0)
    ids = torch.where(there[..., None], tensors["teacher_ids"].long(), torch.arange(log_p.shape[-1]))
    losses = torch.where(there, losses_of(y, log_p, ids, options.get("tail", "drop")), 0.0)
    losses = losses * (temperature**2 if options.get("temperature_squared") else 1.0)
    reduction = options.get("reduction", "mean")
    loss = losses if reduction == "none" else losses.sum() / (counts.sum() if reduction == "mean" else 1)
    total = (loss * torch.as_tensor(cotangent, dtype=losses.dtype)).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    return loss, {"student_logits": gradient}


def logits_type(inputs: Mapping[str, Any]) -> torch.dtype:
    """The type of a student's logits."""
    dtype: torch.dtype = inputs["student_logits"].dtype
    return dtype


def is_defined(case: Case) -> bool:
    """Whether its loss is finite: through what is infinite, or 0/0, autograd hands NaN."""
    return bool(np.isfinite(evaluate(case).loss).all())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_formula(case: Case) -> None:
    inputs = {name: torch.tensor(value) for name, value in case.inputs.items()}
    loss, grads = run_torch(inputs, case.parameters, case.grad_output)
    result = evaluate(case)
    for theirs, ours in ((loss, result.loss), (grads["student_logits"], result.grads["student_logits"])):
        expected = host(theirs)
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * max(largest, 1.0))


@pytest.mark.parametrize("tail", ["drop", "bucket", "renormalise"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_other_formats_computed_in_float64(tail: str, temperature: float) -> None:
    for case in cases_of(FUNCTION):
        if case.inputs["student_logits"].dtype != np.float32 or case.inputs["student_logits"].size > 10**4:
            continue
        wide = {
            name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in case.inputs.items()
        }
        options = case.parameters | {"tail": tail, "temperature": temperature}
        asked = case._replace(inputs=wide, parameters=options)
        if is_defined(asked):
            test_formula(asked)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_shipped(dtype: str) -> None:
    """torch in a type that people train in, computed in it: every golden case whose loss is finite."""
    judgement = check(run_torch, function=FUNCTION, dtypes=dtype, to_native=native, compute_dtype=dtype)
    known = {case.id for case in cases_of(FUNCTION) if is_defined(case)}
    assert [case.id for case in judgement.cases if not case.passed and case.id in known] == []


def test_divergence_of_one_minus_q() -> None:
    """1 − Q of a sure student is 0 in float64, and its logarithm −inf, where the exact loss is finite."""
    logits = torch.tensor([[0.0, -40.0, -41.0]], dtype=torch.float64, requires_grad=True)
    q = torch.softmax(logits, -1)[:, 0]
    loss = -1.0 * torch.exp(torch.tensor(-1.0)) - (1 - torch.exp(torch.tensor(-1.0))) * torch.log1p(-q)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(torch.isinf(loss).all())
    assert not bool(torch.isfinite(gradient).all())
    exact = refloss.topk_distillation(logits.detach(), [[-1.0]], [[0]], tail="bucket")
    assert 20 < exact.loss < 30
    assert np.isfinite(exact.grads["student_logits"]).all()
