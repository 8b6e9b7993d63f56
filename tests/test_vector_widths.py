"""The same bits whichever vectors a processor has: every family of kernels, compiled for others by another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from tests import vector_widths

# By width: a level of x86-64, what it is told besides, its widest registers, and what a processor of it has. The first
# has no fused multiply-add either, which is a function of the C library there.
LEVELS = {
    128: ("x86-64-v2", "", "xmm", "sse4.2"),
    256: ("x86-64-v3", "", "ymm", "avx2"),
    512: ("x86-64-v4", "-prefer-256-bit", "zmm", "avx512f"),
}


@pytest.fixture(scope="module")
def here():
    """The bits of this process, whose kernels are compiled for this processor."""
    return vector_widths.all_bits()


@pytest.fixture(scope="module", params=[128, 256, pytest.param(512, marks=pytest.mark.slow)], ids="{} bits".format)
def there(request):
    """The bits of a process that compiles for vectors of a width."""
    width = request.param
    level, features, widest, needed = LEVELS[width]
    if needed not in {name for name, has in llvm.get_host_cpu_features().items() if has}:
        pytest.skip("this processor has no such vectors")
    here = vector_widths.registers()[-1]
    if widest == here:
        pytest.skip("these are what everything else is compiled for")
    if width != (256 if here == "zmm" else 128) and request.config.option.markexpr == "not slow":
        pytest.skip("everything is compiled anew, a minute for each width: all of them with -m ''")
    environment = os.environ | {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-m", "tests.vector_widths"]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
    answer = json.loads(run.stdout)
    assert answer["registers"][-1] == widest
    return answer["bits"]


@pytest.mark.parametrize("name", vector_widths.FORMATS)
@pytest.mark.parametrize("family", vector_widths.FAMILIES)
def test_other_vectors_give_the_same_bits(here, there, family, name):
    assert there[f"{family}-{name}"] == here[f"{family}-{name}"]
