"""Losses of three arrays of corresponding elements, and of counts, against torch, in float64 and as people train."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from conformance.cases import Case
from conformance.comparison import assert_as_shipped, assert_formula, identifier
from conformance.triple_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=identifier)
def test_formula(case: Case) -> None:
    assert_formula(case)


@pytest.mark.parametrize(("case", "dtype"), list(product(CASES, (torch.float32, torch.bfloat16))), ids=identifier)
def test_as_shipped(case: Case, dtype: torch.dtype) -> None:
    """And wrong answers fail, but where a bound is infinite."""
    assert_as_shipped(case, dtype, telling=not case.degenerate)


def test_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
