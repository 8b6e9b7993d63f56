"""Losses that are defined outside of refloss, on a GPU."""

import importlib

import pytest

from refloss.golden.corpus import corpus
from tests.cuda_cases import assert_case_has_the_cpu_s_bits


@pytest.mark.parametrize("name", ["log_cosh", "z_loss"])
def test_a_loss_from_outside_has_the_cpu_s_bits(name):
    importlib.import_module("tests.toy_losses")
    for case in corpus({name})[:4]:
        assert_case_has_the_cpu_s_bits(case)
