"""Log-probabilities and entropies of a linear layer's outputs against torch: in float64, and as people train.

torch has a layer, and trainers write the rest of log_softmax and gather.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from conformance.test_log_probs import TOLERANCE, host, log_probs_of, native
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate
from refloss.testing import check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.cases.source import Case

FUNCTION = "linear_selected_log_probs"
CASES = [case for case in cases_of(FUNCTION) if case.inputs["input"].dtype == np.float64]
LAYER = ("input", "linear_weight", "linear_bias")


def written(logits: torch.Tensor, dtype: str) -> torch.Tensor:
    """Logits that are written down in a type; gradients go through."""
    return logits + (logits.detach().to(getattr(torch, dtype)).to(logits.dtype) - logits.detach())


def run_torch(inputs: Mapping[str, Any], parameters: Mapping[str, Any], cotangent: Any) -> tuple[Any, ...]:
    """As refloss.testing.check calls a candidate, with torch's tensors."""
    given, chain = dict(inputs), dict(parameters)
    layer = {name: given.pop(name).requires_grad_() for name in LAYER if name in given}
    x = layer["input"]
    if "mask" in given:
        # Not even an infinite number may reach the products of a row that does not count.
        x = torch.where(given["mask"].bool()[..., None], x, 0.0)
    logits = torch.nn.functional.linear(x, layer["linear_weight"], layer.get("linear_bias"))
    dtype = chain.pop("logits_dtype", None)
    if dtype is not None:
        logits = written(logits, dtype)
    outputs = log_probs_of(logits, given["index"].long(), given.get("mask"), **chain)
    of = cotangent if isinstance(cotangent, dict) else {"log_probs": cotangent}
    weights = [torch.as_tensor(of.get(name, 0.0), dtype=logits.dtype) for name in ("log_probs", "entropy")]
    total = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(total, [*layer.values()])  # type: ignore[arg-type]
    log_probs, entropy = outputs
    return log_probs, dict(zip(layer, gradients, strict=True)), {"log_probs": log_probs, "entropy": entropy}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_formula(case: Case) -> None:
    inputs = {name: torch.tensor(value) for name, value in case.inputs.items()}
    loss, grads, components = run_torch(inputs, case.parameters, case.grad_output)
    result = evaluate(case)
    pairs = [(loss, result.loss), *((grads[name], result.grads[name]) for name in grads)]
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
