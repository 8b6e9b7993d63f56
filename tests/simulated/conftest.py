"""Tests of this folder are run by another process, in which Numba simulates a GPU: one for each worker of pytest."""

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.simulated import process

collect_ignore_glob = [] if importlib.util.find_spec("numba_cuda") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def simulator():
    """The process, which is kept: what it has compiled serves the next test."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NUMBA_ENABLE_CUDASIM", "1")
            # Each scalar is compiled by itself here, and called a few times: to optimise it takes longer than it saves.
            patch.setenv("NUMBA_OPT", "0")
            pool.submit(process.prepare).result()
        yield pool


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Hand the test over, with its parameters and what its fixtures have made."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    pool = pyfuncitem.funcargs["simulator"]
    pool.submit(process.run, pyfuncitem.module.__name__, pyfuncitem.originalname, arguments).result()
    return True
