"""What tests are made of is computed by tests: to collect them compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ASKED_FOR

ROOT = Path(__file__).parents[1]


def test_collection_asks_for_no_kernel(request):
    """That of this process, of all that it was asked to run."""
    assert request.config.stash[ASKED_FOR] == []


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tests", "conformance"])
def test_collection_compiles_nothing(folder):
    """Where compiling is forbidden, the first kernel is an error."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", folder]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
