"""Settings for every test: Hypothesis without deadlines, because first calls compile, and reproducible.

Where workers are to run all tests, kernels are compiled before they start: each would compile the same ones. Workers
share the cores, so that torch and BLAS have one thread in each: more of them would wait for each other, busily.
"""

import os
import subprocess
import sys

import pytest
from hypothesis import settings

from refloss.commands import progress

settings.register_profile("refloss", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("refloss")

# What a command says does not depend on how long kernels take.
progress.PERIOD = 3600.0


# They compile everything anew, in processes of their own: not to be waited for at the end.
EARLY = ("test_vector_widths.py", "test_negations.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in EARLY)


def has_workers(config):
    """Whether this process only hands out the tests."""
    return not hasattr(config, "workerinput") and (config.getoption("numprocesses", None) or 0) > 1


def pytest_configure(config):
    if has_workers(config):
        for library in ("OMP", "OPENBLAS", "MKL"):
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_sessionstart(session):
    config = session.config
    if not has_workers(config) or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    config.get_terminal_writer().line("compiling kernels, unless they are on disk")
    # What goes wrong there goes wrong in a test as well, which tells more.
    subprocess.run([sys.executable, "-m", "refloss", "warm"], cwd=config.rootpath, check=False)
