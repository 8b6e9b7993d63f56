"""Every option that code for the GPU is compiled with, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import cuda

if TYPE_CHECKING:
    from collections.abc import Callable

SIMULATED: bool = bool(cuda.config.ENABLE_CUDASIM)
# Optimising again when modules are linked would contract products and sums, whatever they were compiled with. The
# option has to come with the function: numba.cuda forgets those that come before it.
_OPTIONS: dict[str, Any] = {} if SIMULATED else {"lto": False}


def gpu_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel, when it is launched first."""
    return cuda.jit(function, **_OPTIONS)


def gpu_function(function: Callable[..., Any]) -> Any:
    """Compile what kernels call and what is not a scalar: it uses threads, barriers or shared memory."""
    return cuda.jit(function, device=True, **_OPTIONS)
