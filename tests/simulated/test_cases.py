"""Every golden case under the CUDA simulator: each public function, each format, bit by bit."""

import pytest

from refloss.golden import corpus
from tests.cuda_cases import assert_case_has_the_cpu_s_bits

CASES = corpus.corpus()


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_a_golden_case_has_the_cpu_s_bits(case):
    assert_case_has_the_cpu_s_bits(case)
