"""PyTorch's own sample inputs for these losses, from its operator tests, as an outside choice of what to compare.

Samples are only values, shapes and options; each is run on both sides with a cotangent of its own, as the cases are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

import refloss
from conformance.call import TORCH_FUNCTIONS, Call, array
from conformance.cases import CROSS_ENTROPY, Case
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

# torch warns that "mean" is not the mathematical divergence; it is the loss that is compared here.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SAMPLES = {
    "mse": 6,
    "l1": 6,
    "smooth_l1": 8,
    "huber": 9,
    "bce": 11,
    "bce_with_logits": 26,
    "kl_div": 16,
    "margin_ranking": 24,
    "gaussian_nll": 108,
    "poisson_nll": 72,
    "nll": 61,
    "cross_entropy": 21,
}
TAKES_LABELS = ("nll", CROSS_ENTROPY)
OPERATORS: dict[str, Any] = {
    loss: next(operator for operator in op_db if operator.name == f"nn.functional.{function.__name__}")
    for loss, function in TORCH_FUNCTIONS.items()
}


def _cases(loss: str, dtype: torch.dtype) -> Iterator[Case]:
    """The samples of an operator as cases."""
    random = np.random.default_rng(31)
    torch.manual_seed(31)
    for number, sample in enumerate(OPERATORS[loss].sample_inputs("cpu", dtype, requires_grad=False)):
        if loss == "gaussian_nll" and sample.args[0].shape != sample.input.shape:
            continue  # a target that broadcasts
        inputs = dict(zip(FUNCTIONS[loss].required, map(array, (sample.input, *sample.args)), strict=True))
        inputs |= {name: array(value) for name, value in sample.kwargs.items() if isinstance(value, torch.Tensor)}
        options = {name: value for name, value in sample.kwargs.items() if not isinstance(value, torch.Tensor)}
        if loss == "poisson_nll" and options.get("full"):
            # Of a target of 0 the derivative of its term is NaN there (DIVERGENCES of triple_cases).
            inputs["target"] = np.where(inputs["target"] == 0, 1.0, inputs["target"])
        rows = [size for axis, size in enumerate(sample.input.shape) if axis != min(1, sample.input.ndim - 1)]
        summed = options.get("reduction", "mean") != "none"
        shape = () if summed else tuple(rows) if loss in TAKES_LABELS else sample.input.shape
        cotangent = random.standard_normal(shape) if len(shape) else -3.5
        yield Case(f"{loss}-{number}", loss, inputs, options, cotangent)


RUNS = [(case, dtype) for dtype in DTYPES for loss in SAMPLES for case in _cases(loss, dtype)]


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_sample(case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        assert_formula(case)
    else:
        assert_as_shipped(case, dtype)


def test_samples_are_all_there() -> None:
    assert SAMPLES.keys() == TORCH_FUNCTIONS.keys()
    for loss, dtype in ((loss, dtype) for loss in SAMPLES for dtype in DTYPES):
        assert sum(case.loss == loss and run == dtype for case, run in RUNS) == SAMPLES[loss]


def test_no_sample_broadcasts() -> None:
    """refloss raises where torch would broadcast a target to the input; none of the samples has it do so."""
    for case, _ in RUNS:
        first, target = list(case.inputs.values())[:2]
        assert case.loss in TAKES_LABELS or first.shape == target.shape, case.id


@pytest.mark.parametrize("loss", [loss for loss in SAMPLES if loss not in TAKES_LABELS])
def test_broadcasting_samples_raise(loss: str) -> None:
    """A sample whose target has lost an axis raises here, whatever torch makes of it."""
    broadcast = 0
    for case, dtype in RUNS:
        if case.loss != loss or not case.inputs["target"].ndim or not case.inputs["target"].shape[0]:
            continue
        call = Call(case, dtype)
        target = {"target": call.arguments["target"].detach()[0]}
        with pytest.raises(ValueError, match="target has shape"):
            getattr(refloss, loss)(**{**call.arguments, **target}, grad_output=call.cotangent)
        broadcast += 1
    assert broadcast >= 3


@pytest.mark.parametrize("loss", [loss for loss in SAMPLES if OPERATORS[loss].error_inputs_func is not None])
def test_errors_of_torch_are_errors_here(loss: str) -> None:
    errors = list(OPERATORS[loss].error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises(ValueError, match=r"reduction is|(target|input2) has shape|delta is|var has shape"):
            getattr(refloss, loss)(sample.input, *sample.args, **sample.kwargs)
