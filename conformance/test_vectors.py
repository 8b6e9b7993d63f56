"""The losses of rows of vectors against torch, tensor by tensor: the formula in float64, both as people train."""

from __future__ import annotations

import pytest
import torch

from conformance.cases import Case
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from conformance.vector_cases import CASES, WITHOUT_BFLOAT16

TRAINING_DTYPES = (torch.float32, torch.bfloat16)
RUNS = [
    (case, dtype)
    for case in CASES
    for dtype in TRAINING_DTYPES
    if dtype == torch.float32 or case.loss not in WITHOUT_BFLOAT16
]


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    assert_formula(case)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    assert_as_shipped(case, dtype, telling=not case.degenerate)
