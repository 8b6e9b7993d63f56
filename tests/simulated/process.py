"""What happens in the process that has a simulated GPU: whichever test it is handed.

Numba chooses its simulator when it is imported, by an environment variable, so it cannot be the process that has
everything else.
"""

import functools
import importlib
import sys
import threading
import warnings
from typing import Any

import numpy as np

# For how long the threads of a block are not looked at, in seconds.
PATIENCE = 1e-4


def prepare() -> None:
    """Make the process what pytest's is, and its simulator what these tests need."""
    importlib.import_module("tests.conftest")
    _keep_no_kernels()
    _compile_apart()
    _share_arrays_by_line()
    _sleep_while_waiting()
    warnings.simplefilter("error")


def run(module: str, test: str, arguments: dict[str, Any]) -> None:
    """Run a test; what it raises reaches the process that asked for it."""
    getattr(importlib.import_module(module), test)(**arguments)


def _keep_no_kernels() -> None:
    """Leave no machine code for others: here it is not optimised."""
    from refloss.disk_cache import DiskCache

    DiskCache.save_overload = lambda *_: None  # type: ignore[method-assign]


def _compile_apart() -> None:
    """Make machine code of what Python calls alone: what compiled code calls is joined with that, as elsewhere."""
    import numba

    from refloss import inside, jit

    for_any_integer = jit._for_any_integer

    def apart(dispatcher: Any) -> Any:
        options = dispatcher.targetoptions | {"no_cpython_wrapper": True}
        within = for_any_integer(numba.jit(pipeline_class=inside.Compiler, **options)(dispatcher.py_func))
        # By these two, callers that are compiled find it.
        dispatcher.get_call_template, dispatcher.get_overload = within.get_call_template, within.get_overload
        return dispatcher

    jit._for_any_integer = apart


def _sleep_while_waiting() -> None:
    """Have who waits for the threads of a block sleep: the simulator looks at them all the time, as busily as they."""
    from numba.cuda.simulator.kernel import BlockThread

    def is_alive(self: Any) -> bool:
        if not self.syncthreads_blocked:
            self.join(PATIENCE)
        return threading.Thread.is_alive(self)

    BlockThread.is_alive = is_alive


def _share_arrays_by_line() -> None:
    """Let threads that ask for a shared array at the same moment have the same one; the simulator's own may differ."""
    from numba.cuda.simulator.kernelapi import FakeCUDAShared
    from numba.np import numpy_support

    lock = threading.Lock()

    @functools.wraps(FakeCUDAShared.array)
    def array(self: Any, shape: Any, dtype: Any) -> Any:
        caller = sys._getframe(1)
        with lock:
            place = (caller.f_code.co_filename, caller.f_lineno)
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, numpy_support.as_dtype(dtype))
            return self._allocations[place]

    FakeCUDAShared.array = array
