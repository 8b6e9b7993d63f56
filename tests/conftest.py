"""Settings for every test: Hypothesis without deadlines, because first calls compile, and reproducible.

Where workers are to run all tests, kernels are compiled before they start: each would compile the same ones. Workers
share the cores, so that torch and BLAS have one thread in each: more of them would wait for each other, busily.
"""

import contextlib
import gc
import os
import subprocess
import sys

import pytest
from hypothesis import settings

from refloss.commands import progress

settings.register_profile("refloss", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("refloss")

# To look for cycles after every 700 objects takes a twentieth of the time that code for a GPU takes to compile.
gc.set_threshold(100_000, 20, 20)

# What a command says does not depend on how long kernels take.
progress.PERIOD = 3600.0


# The kernels that were asked for while tests were collected.
ASKED_FOR = pytest.StashKey[list[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Note the kernels that are called meanwhile: test_collection.py says that there are none."""
    if has_workers(session.config):
        return (yield)
    from refloss.disk_cache import DiskCache

    asked_for = session.config.stash.setdefault(ASKED_FOR, [])
    load = DiskCache.load_overload

    def noting(self, *given):
        asked_for.append(self._base)
        return load(self, *given)

    with pytest.MonkeyPatch.context() as patch, without_collecting():
        patch.setattr(DiskCache, "load_overload", noting)
        return (yield)


@contextlib.contextmanager
def without_collecting():
    """What is made here stays, modules and thousands of tests: whoever looks for cycles never has to look at it."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


# What takes longest, a file or a folder: handed out first, so that nobody waits for it at the end.
EARLY = (
    *("simulated", "test_gauntlet.py", "test_ptx.py", "test_metamorphic.py", "test_vector_widths.py"),
    *("test_mutants.py", "test_shipped.py", "test_outside_users.py", "test_explain.py", "test_interrupt.py"),
)

# Files that ask for the right answers to all golden cases (tests/questions.py), which are computed once in a process.
ASKING = ("test_gauntlet.py", "test_mutants.py", "test_explain.py", "test_diagnosis.py", "test_judge.py")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(EARLY)}
    items.sort(key=lambda item: min(order.get(name, len(EARLY)) for name in (item.path.name, item.path.parent.name)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files as they are, but one worker has all that share a process of its own, or answers that take long."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            if "tests/simulated/" in file:
                return file.partition("test_")[0]
            return "asking" if file.endswith(ASKING) else file

    return Scheduling(config, log)


def has_workers(config):
    """Whether this process only hands out the tests."""
    return not hasattr(config, "workerinput") and (config.getoption("numprocesses", None) or 0) > 1


def pytest_configure(config):
    # Commands print what they do where nobody says how wide it may be.
    os.environ.pop("COLUMNS", None)
    os.unsetenv("COLUMNS")  # pytest imports readline, which sets it where os.environ does not see it, but children do
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
