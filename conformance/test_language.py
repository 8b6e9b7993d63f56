"""refloss against torch and transformers, tensor by tensor: the loss, every gradient and every intermediate.

The formula is compared in float64, where both sides are right to many digits. Then both sides get the same inputs in a
type that people train in, and may differ by what torch's own precision explains, element by element (error_model). A
bound proves nothing unless wrong answers fail under it, so those that the judge is tested with are tried as well.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

import refloss
from conformance.call import tensor
from conformance.cases import CASES, Case, Layout
from conformance.comparison import (
    assert_as_shipped,
    assert_formula,
    identifier,
    scale,
)

TRAINING_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided", "transposed")

RUNS = [
    (case, dtype)
    for case, dtype in product(CASES, TRAINING_DTYPES)
    if scale(case.inputs["logits"]) < torch.finfo(dtype).max
]


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    assert_formula(case)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    """And wrong answers fail."""
    assert_as_shipped(case, dtype, telling=not case.degenerate)


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
