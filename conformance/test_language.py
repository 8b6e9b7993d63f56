"""refloss against torch and transformers, tensor by tensor: the loss, every gradient and every intermediate.

The formula is compared in float64, where both sides are right to many digits. Then both sides get the same inputs in a
type that people train in, and may differ by what torch's own precision explains, element by element (error_model). A
bound proves nothing unless wrong gradients fail under it, so they are tried as well.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import refloss
from conformance.cases import CASES, DIVERGENCES, Array, Case, Divergence, Layout
from conformance.error_model import tolerances
from conformance.reference import Call, disagreements, formula_precision, run_refloss, run_torch, tensor

if TYPE_CHECKING:
    from collections.abc import Callable

TRAINING_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided", "transposed")
FORMULA_TOLERANCE = 1e-12  # of the tensor's largest element

MUTANTS: dict[str, Callable[[Array, Array], Array]] = {
    "zero": lambda gradient, _: np.zeros_like(gradient),
    "negated": lambda gradient, _: -gradient,
    "doubled": lambda gradient, _: 2 * gradient,
    "a fifth too large": lambda gradient, _: 1.2 * gradient,
    "shifted by a class": lambda gradient, _: np.roll(gradient, 1),
    "blind to grad_output": lambda _, gradient_of_ones: gradient_of_ones,
}


def scale(values: Array) -> float:
    """The largest magnitude of a tensor that is a number."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


def identifier(value: Case | torch.dtype | Divergence) -> str:
    """A parameter's part of a test's id."""
    if isinstance(value, Divergence):
        return f"{value.case.id}-{value.tensor}"
    return value.id if isinstance(value, Case) else str(value).removeprefix("torch.")


RUNS = [
    (case, dtype)
    for case, dtype in product(CASES, TRAINING_DTYPES)
    if scale(case.inputs["logits"]) < torch.finfo(dtype).max
]


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    with formula_precision():
        call = Call(case, torch.float64)
        expected = run_torch(call)
    tolerance = {name: np.asarray(FORMULA_TOLERANCE * scale(values)) for name, values in expected.items()}
    lines = disagreements(run_refloss(call), expected, tolerance)
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    call = Call(case, dtype)
    lines = disagreements(run_torch(call), run_refloss(call), tolerances(call))
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(("case", "dtype"), [run for run in RUNS if not run[0].degenerate], ids=identifier)
def test_wrong_gradients_fail(case: Case, dtype: torch.dtype) -> None:
    call = Call(case, dtype)
    expected, right, tolerance = run_torch(call), run_refloss(call), tolerances(call)
    of_ones = run_refloss(call, grad_output=1.0)
    for gradient in (name for name in right if name.startswith("grad.")):
        for mutant, mutate in MUTANTS.items():
            wrong = {**right, gradient: mutate(right[gradient], of_ones[gradient])}
            assert disagreements(wrong, expected, tolerance), f"{mutant} {gradient} passes"


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=identifier)
def test_divergence(divergence: Divergence) -> None:
    """Where the two differ by intention, they differ as documented; a difference that has gone fails."""
    call = Call(divergence.case, torch.float64)
    theirs, ours = (run(call)[divergence.tensor][divergence.element] for run in (run_torch, run_refloss))
    np.testing.assert_array_equal(theirs, divergence.theirs)
    np.testing.assert_allclose(ours, divergence.ours, rtol=1e-15)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, *TRAINING_DTYPES], ids=identifier)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
def test_torch_tensors_are_read_where_they_lie(dtype: torch.dtype, layout: Layout, requires_grad: bool) -> None:
    """A tensor of any dtype, layout and history gives the bits that its values give."""
    random = np.random.default_rng(7)
    logits = tensor(3.0 * random.standard_normal((3, 5, 4)), dtype, layout).requires_grad_(requires_grad)
    before = logits.detach().clone()
    labels = torch.from_numpy(random.integers(0, 5, (3, 4)))
    cotangent = torch.from_numpy(random.standard_normal((3, 4)))
    found = refloss.cross_entropy(logits, labels, reduction="none", grad_output=cotangent)
    values = np.ascontiguousarray(before.double().numpy())
    wanted = refloss.cross_entropy(
        values,
        labels.numpy(),
        reduction="none",
        grad_output=cotangent.numpy(),
        grad_dtype=found.grads["logits"].dtype,
    )
    assert str(found.grads["logits"].dtype) == str(dtype).removeprefix("torch.")
    assert found.loss.tobytes() == wanted.loss.tobytes()
    assert found.grads["logits"].tobytes() == wanted.grads["logits"].tobytes()
    assert torch.equal(logits, before)
