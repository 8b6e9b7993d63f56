"""Losses of an input and a sign against torch: the formula in float64, then as people train, and wrong answers."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from conformance.cases import Case
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from conformance.margin_cases import CASES

RUNS = list(product(CASES, (torch.float32, torch.bfloat16)))


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    assert_formula(case)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    """And wrong answers fail."""
    assert_as_shipped(case, dtype, telling=not case.degenerate)
