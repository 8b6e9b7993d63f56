"""Every kernel in every format, bit by bit against the CPU; with -m slow every golden case."""

import pytest

from tests.cuda_cases import assert_case_has_the_cpu_s_bits, chosen_cases, golden_cases
from tests.cuda_kernels import FORMATS, Launch, every_kernel, noted_launches

# What each case has launched in this process.
LAUNCHES: dict[str, set[Launch]] = {}


@pytest.mark.parametrize("name", chosen_cases())
def test_a_case_has_the_cpu_s_bits(name):
    with noted_launches() as launches:
        assert_case_has_the_cpu_s_bits(chosen_cases()[name])
    LAUNCHES[name] = launches


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_cases())
def test_a_golden_case_has_the_cpu_s_bits(name):
    assert_case_has_the_cpu_s_bits(golden_cases()[name])


def test_every_kernel_is_launched_in_every_format():
    """By what is computed by default; kernels that meet no user's array have one format, float64."""
    for name in chosen_cases().keys() - LAUNCHES:
        test_a_case_has_the_cpu_s_bits(name)
    launches = set().union(*LAUNCHES.values())
    seen = {
        kernel: {name for launch in launches if launch.kernel == kernel for name in launch.formats}
        for kernel in {launch.kernel for launch in launches}
    }
    missing = [str(kernel) for kernel in every_kernel() if kernel not in seen]
    assert not missing, missing
    in_few = {str(kernel): found for kernel, found in seen.items() if found and found != set(FORMATS)}
    assert not in_few, in_few
