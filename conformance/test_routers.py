"""Losses of a router against torch's formulas in float64, and transformers' load_balancing_loss_func as it ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import refloss
from conformance.call import array
from conformance.test_log_probs import native
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate
from refloss.testing import check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case

BALANCE, Z_LOSS = "moe_load_balancing", "router_z_loss"
CASES = [case for name in (BALANCE, Z_LOSS) for case in cases_of(name)]
TOLERANCE = 1e-12  # of the tensor's largest element
UNDEFINED = ("all-masked",)


def counted(logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Which rows count, of the shape of the rows."""
    rows = logits.shape[:-1]
    if mask is None:
        return torch.ones(rows, dtype=torch.bool)
    return mask.bool().reshape(-1).expand(rows.numel() // max(mask.numel(), 1), mask.numel()).reshape(rows)


def z_loss(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of lse²."""
    return (torch.logsumexp(logits[counted(logits, mask)], -1) ** 2).mean()


def balance(
    logits: torch.Tensor,
    top_k: int,
    mask: torch.Tensor | None = None,
    selected: torch.Tensor | None = None,
    *,
    pool_layers: bool = True,
    normalise_top_k: bool = False,
) -> torch.Tensor:
    """transformers' formula, in the type of its logits, with ties as they are decided here."""
    held, experts = counted(logits, mask), logits.shape[-1]
    if not pool_layers and logits.ndim > 2:
        options: dict[str, Any] = {"normalise_top_k": normalise_top_k}
        parts = zip(logits, held, [None] * len(logits) if selected is None else selected, strict=True)
        return torch.stack([balance(x, top_k, m, s, **options) for x, m, s in parts]).mean()
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)[..., :top_k]
    chosen = (order if selected is None else selected.long())[held]
    f = torch.nn.functional.one_hot(chosen.reshape(-1), experts).sum(0).to(logits.dtype) / len(chosen)
    p = torch.softmax(logits[held], -1).mean(0)
    return experts * (f * p).sum() / (top_k if normalise_top_k else 1)


def run_torch(inputs: Mapping[str, Any], parameters: Mapping[str, Any], cotangent: Any) -> tuple[Any, ...]:
    """As refloss.testing.check calls a candidate."""
    tensors = dict(inputs)
    logits = tensors.pop("router_logits").requires_grad_()
    loss = balance(logits, **tensors, **parameters) if "top_k" in parameters else z_loss(logits, **tensors)
    (gradient,) = torch.autograd.grad(loss, logits, torch.as_tensor(cotangent, dtype=loss.dtype))
    return loss, {"router_logits": gradient}


def run_transformers(inputs: Mapping[str, Any], parameters: Mapping[str, Any], cotangent: Any) -> tuple[Any, ...]:
    """load_balancing_loss_func of a tuple of layers. It reads tokens that are masked, so that they are 0 here."""
    logits, mask, top_k = inputs["router_logits"], inputs.get("mask"), parameters["top_k"]
    layers = logits if logits.ndim > 2 else logits[None]
    if "selected" in inputs or not parameters.get("pool_layers", True) or are_tied(layers, top_k):
        raise NotImplementedError
    if mask is not None and (mask.numel() != layers.shape[1] or not mask.any()):
        raise NotImplementedError
    held = torch.where(counted(logits, mask)[..., None], logits, 0.0).requires_grad_()
    given = tuple(held) if logits.ndim > 2 else (held,)
    loss = load_balancing_loss_func(given, logits.shape[-1], top_k, mask)
    loss = loss / (top_k if parameters.get("normalise_top_k", False) else 1)
    (gradient,) = torch.autograd.grad(loss, held, torch.as_tensor(cotangent, dtype=loss.dtype))
    return loss, {"router_logits": gradient}


def are_tied(layers: torch.Tensor, top_k: int) -> bool:
    """Whether its own probabilities do not say which expert is the last to be chosen."""
    p = torch.softmax(layers, -1).sort(dim=-1, descending=True).values
    return bool((p[..., top_k - 1 : top_k] == p[..., top_k : top_k + 1]).any())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_formula(case: Case) -> None:
    """Every golden case, its inputs in float64."""
    inputs = {
        name: value.astype(np.float64) if name == "router_logits" else value for name, value in case.inputs.items()
    }
    loss, grads = run_torch({name: native(value) for name, value in inputs.items()}, case.parameters, case.grad_output)
    result = evaluate(case._replace(inputs=inputs))
    np.testing.assert_allclose(result.loss, float(loss.detach()), rtol=1e-13)
    expected = array(grads["router_logits"])
    if case.id.endswith(UNDEFINED):
        assert not expected.any() or np.isnan(expected).all()
        return
    largest = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(result.grads["router_logits"], expected, rtol=0, atol=TOLERANCE * max(largest, 1.0))


@pytest.mark.parametrize("name", [BALANCE, Z_LOSS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_trained(name: str, dtype: str) -> None:
    """The formula in a type that people train in."""
    judgement = check(run_torch, function=name, dtypes=dtype, to_native=native, compute_dtype=dtype)
    assert [case.id for case in judgement.cases if case.passed is False] == []


def test_as_shipped() -> None:
    """transformers' function: one layer and several, with masks and without."""
    judgement = check(run_transformers, function=BALANCE, dtypes="float32", to_native=native)
    assert [case.id for case in judgement.cases if case.passed is False] == []
    passed = {case.id.removeprefix(f"{BALANCE}-") for case in judgement.cases if case.passed}
    assert {"masked", "masked-layers", "options-normalised", "opposite-layers", "experts-64"} <= passed


def test_ties_of_probabilities() -> None:
    """Logits that differ, whose probabilities are one number: in float32 both are 0, in bfloat16 both are 0.5."""
    far = torch.tensor([[0.0, 200.0, 50.0]])
    assert torch.softmax(far, -1)[0].tolist() == [0.0, 1.0, 0.0]
    assert refloss.moe_load_balancing(far, 2).intermediates["selected"].tolist() == [[1, 2]]
    near = torch.tensor([[0.0, 2.0**-10]], dtype=torch.bfloat16)
    assert torch.softmax(near, -1)[0].tolist() == [0.5, 0.5]
    assert refloss.moe_load_balancing(near, 1).intermediates["selected"].tolist() == [[1]]
