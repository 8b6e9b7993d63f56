"""Log-probabilities and entropies against torch: the formula in float64, then as people train, and what trainers have.

torch has no such function; trainers write it of log_softmax and gather. Here a class of −inf is left out of the
entropy, which they do not do: their NaN is below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import refloss
from conformance.call import array
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate
from refloss.testing import check

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refloss.cases.source import Case

FUNCTION = "selected_log_probs"
CASES = [case for case in cases_of(FUNCTION) if case.inputs["logits"].dtype == np.float64]
TOLERANCE = 1e-12  # of the tensor's largest element


def entropy_of(log_p: torch.Tensor) -> torch.Tensor:
    """H, without classes that have no probability; those that are left out must not reach the backward pass either."""
    there = torch.where(torch.isneginf(log_p), 0.0, log_p)
    return -(log_p.exp() * there).sum(-1)


def log_probs_of(
    logits: torch.Tensor,
    index: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: Callable[[torch.Tensor], torch.Tensor] = entropy_of,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p of the indices and H, as a trainer has them."""
    counts = torch.ones(logits.shape[:-1], dtype=torch.bool) if mask is None else mask.bool()
    z = torch.where(counts[..., None], logits, 0.0) * logit_scale
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    log_p = torch.log_softmax(z, -1)
    several = index if index.ndim == logits.ndim else index[..., None]
    chosen = log_p.gather(-1, torch.where(counts[..., None], several, 0))
    chosen = torch.where(counts[..., None], chosen, 0.0).reshape(index.shape)
    return chosen, torch.where(counts, entropy(log_p), 0.0)


def run_torch(inputs: Mapping[str, Any], parameters: Mapping[str, Any], cotangent: Any) -> tuple[Any, ...]:
    """As refloss.testing.check calls a candidate, with torch's tensors."""
    tensors = dict(inputs)
    logits = tensors.pop("logits").requires_grad_()
    outputs = log_probs_of(logits, tensors.pop("index").long(), tensors.pop("mask", None), **parameters)
    given = cotangent if isinstance(cotangent, dict) else {"log_probs": cotangent}
    weights = [torch.as_tensor(given.get(name, 0.0), dtype=logits.dtype) for name in ("log_probs", "entropy")]
    total = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    (gradient,) = torch.autograd.grad(total, logits)  # type: ignore[arg-type]
    log_probs, entropy = outputs
    return log_probs, {"logits": gradient}, {"log_probs": log_probs, "entropy": entropy}


def native(value: Any) -> Any:
    """A tensor of an array."""
    if not isinstance(value, np.ndarray | np.generic):
        return value
    if value.dtype.name == "bfloat16":
        return torch.tensor(value.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(value)


def host(value: torch.Tensor) -> np.ndarray:
    """An array of a tensor."""
    return array(value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_formula(case: Case) -> None:
    inputs = {name: torch.tensor(value) for name, value in case.inputs.items()}
    loss, grads, components = run_torch(inputs, case.parameters, case.grad_output)
    result = evaluate(case)
    pairs = [(loss, result.loss), (grads["logits"], result.grads["logits"])]
    pairs += [(components[name], result.components[name]) for name in components]
    for theirs, ours in pairs:
        expected = host(theirs)
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * max(largest, 1.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_shipped(dtype: str) -> None:
    """torch in a type that people train in, computed in it: every golden case."""
    judgement = check(run_torch, function=FUNCTION, dtypes=dtype, to_native=native, compute_dtype=dtype)
    assert all(case.passed for case in judgement.cases)


TRAINERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "TRL: −Σ e^(log p)·log p": lambda log_p: -(log_p.exp() * log_p).sum(-1),
    "TRL with nan_to_num": lambda log_p: torch.nan_to_num(-(log_p.exp() * log_p)).sum(-1),
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_divergence(trainer: str) -> None:
    """A class that is masked: NaN, or a gradient of NaN. The exact entropy is log 2, and its gradient 0."""
    logits = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64, requires_grad=True)
    _, entropy = log_probs_of(logits[None], torch.tensor([0]), entropy=TRAINERS[trainer])
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    assert bool(gradient.isnan().any())
    assert bool(entropy.isnan()) == ("nan_to_num" not in trainer)
    exact = refloss.selected_log_probs([[0.0, 0.0, -np.inf]], [0], grad_output={"entropy": 1.0})
    assert np.array_equal(exact.components["entropy"], [np.log(2.0)])
    assert not exact.grads["logits"].any()


def test_divergence_of_verl() -> None:
    """lse − Σ p·z has 0·−∞ as well."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], dtype=torch.float64)
    p = torch.softmax(logits, -1)
    assert bool((torch.logsumexp(logits, -1) - (p * logits).sum(-1)).isnan())
