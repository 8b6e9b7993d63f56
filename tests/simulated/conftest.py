"""These tests need Numba's CUDA simulator, which is chosen before Numba is imported: tests/test_cuda.py runs them."""

import os
import sys
import threading

import numpy as np

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
collect_ignore_glob = [] if SIMULATED else ["test_*.py"]


def shared_once_a_line():
    """Let threads that ask for a shared array at the same moment have the same one; the simulator's own may differ."""
    from numba.cuda.simulator.kernelapi import FakeCUDAShared
    from numba.np import numpy_support

    lock = threading.Lock()

    def array(self, shape, dtype):
        caller = sys._getframe(1)
        with lock:
            place = (caller.f_code.co_filename, caller.f_lineno)
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, numpy_support.as_dtype(dtype))
            return self._allocations[place]

    FakeCUDAShared.array = array


if SIMULATED:
    shared_once_a_line()
    # Threads of a block wait for each other in a loop: who has nothing to do should not have the interpreter for long.
    sys.setswitchinterval(1e-6)
