"""PyTorch's own sample inputs for these losses, from its operator tests, as an outside choice of what to compare.

Samples are only values, shapes and options; each is run on both sides with a cotangent of its own, as the cases are.
Which losses these are says the registry: all that follow a function of torch.nn.functional, and of those none is left.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import refloss
from conformance.call import TORCH_FUNCTIONS, Call, array
from conformance.cases import Case
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from conformance.operators import operator, samples
from refloss.registry import FUNCTIONS
from refloss.specification import Elementwise

if TYPE_CHECKING:
    from collections.abc import Iterator

# torch warns that "mean" is not the mathematical divergence; it is the loss that is compared here.
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
MOST = 64  # samples in a dtype that people train in; in float64 it is all of them
# Losses of torch that no function here follows.
LEFT_OUT = {
    "triplet_margin_with_distance_loss": "its distance is a function of the caller's own",
}
# How its losses are called.
ENDS_OF_NAMES = ("_loss", "cross_entropy", "cross_entropy_with_logits", "kl_div")
OPERATORS: dict[str, Any] = {loss: operator(function.__name__) for loss, function in TORCH_FUNCTIONS.items()}
ARGUMENTS = {loss: list(inspect.signature(FUNCTIONS[loss].call).parameters) for loss in TORCH_FUNCTIONS}


def _cases(loss: str, dtype: torch.dtype) -> Iterator[Case]:
    """The samples of an operator as cases; its arguments come in the order in which torch has them."""
    random = np.random.default_rng(31)
    for number, sample in enumerate(samples(OPERATORS[loss], dtype)):
        given = dict(zip(ARGUMENTS[loss], (sample.input, *sample.args), strict=False)) | sample.kwargs
        given = {name: value for name, value in given.items() if value is not None}
        arrays = {name: value for name, value in given.items() if name in FUNCTIONS[loss].specification.arguments}
        inputs = {name: array(torch.as_tensor(value)) for name, value in arrays.items()}
        options = {name: value for name, value in given.items() if name not in arrays}
        with warnings.catch_warnings(action="ignore"):
            shape = TORCH_FUNCTIONS[loss](sample.input, *sample.args, **sample.kwargs).shape
        cotangent = random.standard_normal(tuple(shape)) if len(shape) else -3.5
        yield Case(f"{loss}-{number}", loss, inputs, options, cotangent)


def _some(cases: list[Case], dtype: torch.dtype) -> list[Case]:
    """All of them, or as many as there may be, from one end to the other."""
    if dtype == torch.float64 or len(cases) <= MOST:
        return cases
    return [cases[len(cases) * k // MOST] for k in range(MOST)]


SAMPLES = {
    (loss, dtype): _some(list(_cases(loss, dtype)), dtype)
    for loss, of in OPERATORS.items()
    for dtype in DTYPES
    if dtype in of.dtypes
}
RUNS = [(case, dtype) for (_, dtype), cases in SAMPLES.items() for case in cases]


def _refusal(call: Call) -> str:
    """What refloss says of arrays that correspond but for their shapes, which torch would stretch."""
    specification = FUNCTIONS[call.case.loss].specification
    shapes = {value.shape for value in call.case.inputs.values()}
    if isinstance(specification, Elementwise) and len(shapes) > 1:
        try:
            getattr(refloss, call.case.loss)(**call.arguments)
        except ValueError as error:
            return str(error)
    return ""


def _stretched(case: Case) -> Case:
    """The case whose input and target have one shape, as torch stretches them."""
    names = list(case.inputs)[:2]
    shape = np.broadcast_shapes(*(case.inputs[name].shape for name in names))
    stretched = {name: np.broadcast_to(case.inputs[name], shape) for name in names}
    return case._replace(inputs={**case.inputs, **stretched})


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_sample(case: Case, dtype: torch.dtype) -> None:
    """Both sides agree; where only torch broadcasts, refloss raises, and they agree about what it broadcasts to."""
    refusal = _refusal(Call(case, dtype))
    if refusal:
        assert "has shape" in refusal
        case = _stretched(case)
    if dtype == torch.float64:
        assert_formula(case)
    else:
        assert_as_shipped(case, dtype)


def test_every_loss_of_torch_is_followed_or_left_out_for_a_reason() -> None:
    theirs = {name for name in dir(functional) if name.endswith(ENDS_OF_NAMES)}
    followed = {function.__name__ for function in TORCH_FUNCTIONS.values()}
    assert followed <= theirs
    assert theirs - followed == LEFT_OUT.keys()
    assert all(LEFT_OUT.values())


def test_samples_are_all_there() -> None:
    """Of each loss, in each dtype that torch has it in: several, with every reduction that they are reduced by."""
    assert {loss for loss, _ in SAMPLES} == TORCH_FUNCTIONS.keys()
    for (loss, dtype), cases in SAMPLES.items():
        every = len(samples(OPERATORS[loss], dtype))
        assert len(cases) == (every if dtype == torch.float64 else min(every, MOST)), loss
        assert len({case.id for case in cases}) == len(cases) >= 4, loss
        assert {loss, *(case.loss for case in cases)} == {loss}
    assert all((loss, dtype) in SAMPLES for loss in TORCH_FUNCTIONS for dtype in DTYPES[:2])


ELEMENTWISE = [
    loss
    for loss in OPERATORS
    if isinstance(FUNCTIONS[loss].specification, Elementwise)
    and not FUNCTIONS[loss].specification.arguments["target"].broadcast
]


@pytest.mark.parametrize("loss", ELEMENTWISE)
def test_broadcasting_samples_raise(loss: str) -> None:
    """A sample whose target has lost an axis raises here, whatever torch makes of it."""
    broadcast = 0
    for case, dtype in RUNS:
        if case.loss != loss or not case.inputs["target"].ndim or not case.inputs["target"].shape[0]:
            continue
        call = Call(case, dtype)
        target = {"target": call.arguments["target"].detach()[0]}
        with pytest.raises(ValueError, match=r"(target|input2) has shape"):
            getattr(refloss, loss)(**{**call.arguments, **target}, grad_output=call.cotangent)
        broadcast += 1
    assert broadcast >= 3


@pytest.mark.parametrize("loss", [loss for loss in OPERATORS if OPERATORS[loss].error_inputs_func is not None])
def test_errors_of_torch_are_errors_here(loss: str) -> None:
    """Which begin with the argument's name."""
    errors = list(OPERATORS[loss].error_inputs("cpu"))
    assert errors
    for error in errors:
        sample = error.sample_input
        with pytest.raises((ValueError, TypeError), match=rf"^({'|'.join(ARGUMENTS[loss])})\b"):
            getattr(refloss, loss)(sample.input, *sample.args, **sample.kwargs)
