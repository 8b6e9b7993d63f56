"""Logit chains and z-losses against their formulas, written in torch as models write them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import refloss
from conformance.call import array
from conformance.chain import cross_entropy
from conformance.comparison import FORMULA_TOLERANCE, scale
from conformance.error_model import with_rounding
from conformance.reference import disagreements
from refloss.cases.source import Case
from refloss.testing.judging.judge import question_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
OPTIONS: dict[str, dict[str, Any]] = {
    "capped": {"softcap": 5.0},
    "saturated": {"softcap": 0.5},
    "scaled": {"logit_scale": 0.0625, "temperature": 0.7},
    "squared": {"z_loss": 1e-2},
    "all": {"logit_scale": -1.5, "softcap": 3.0, "temperature": 1.7, "z_loss": 0.25},
}
TARGETS = ("labels", "weighted", "smoothed", "probabilities")


@pytest.mark.parametrize(("name", "kind", "reduction"), list(product(OPTIONS, TARGETS, ("mean", "sum", "none"))))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula_in_torch_agrees(name: str, kind: str, reduction: str, dtype: torch.dtype) -> None:
    random = np.random.default_rng(61)
    x = torch.tensor(4 * random.standard_normal((6, 9))).to(dtype).requires_grad_()
    target = torch.tensor(random.integers(0, 9, 6))
    target[2] = -100
    options = OPTIONS[name] | {"reduction": reduction}
    if kind == "probabilities":
        target = torch.tensor(random.dirichlet(np.ones(9), 6)).to(dtype).requires_grad_()
    weight = torch.tensor(random.uniform(0.25, 2, 9)).to(dtype) if kind in ("weighted", "smoothed") else None
    options |= {"label_smoothing": 0.2} if kind == "smoothed" else {}
    value = torch.add(*cross_entropy(x, target, weight, **options))
    cotangent = (
        torch.tensor(random.standard_normal(6)).to(dtype) if reduction == "none" else torch.tensor(-3.5).to(dtype)
    )
    inputs = {"logits": x, "target": target} if kind == "probabilities" else {"logits": x}
    grads = torch.autograd.grad(value, list(inputs.values()), cotangent)
    expected = {"loss": array(value)} | {
        f"grad.{key}": array(gradient) for key, gradient in zip(inputs, grads, strict=True)
    }
    given: dict[str, Any] = {"logits": x.detach(), "target": target.detach()} | (
        {} if weight is None else {"weight": weight}
    )
    result = refloss.cross_entropy(**given, grad_output=cotangent, **options)
    found = {"loss": np.asarray(result.loss)} | {f"grad.{key}": result.grads[key].astype(np.float64) for key in inputs}
    if dtype == torch.float64:
        allowed = {key: np.asarray(FORMULA_TOLERANCE * scale(each)) for key, each in expected.items()}
    else:
        arrays = {key: array(each) for key, each in given.items()}
        case = Case(name, "cross_entropy", arrays, options, array(cotangent))
        asked = question_of(case, result, str(dtype).removeprefix("torch."))
        bounds = {key: np.asarray(asked.bounds[key]) for key in expected}
        allowed = with_rounding(bounds, found, given, dtype)
    assert not disagreements(expected, found, allowed)
