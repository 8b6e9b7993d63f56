"""Which device computes: the one switch, which every family of kernels asks."""

from __future__ import annotations

import functools
import importlib.util

from refloss.arrays import choice

BACKENDS = ("auto", "cpu", "cuda")
_INSTALL = "install it with pip install 'refloss[cuda13]' (or 'refloss[cuda12]' for drivers of CUDA 12)"


def chosen(backend: str, *, on_gpu: bool = False) -> str:
    """The backend that a caller asks for: "auto" is CUDA where an input lives on a GPU, else the CPU."""
    if choice(backend, "backend", BACKENDS) == "auto":
        return "cuda" if on_gpu else "cpu"
    return backend


def runs_on_gpu(backend: str) -> bool:
    """Whether a GPU computes; raises unless there is one that can."""
    if chosen(backend) == "cpu":
        return False
    require_cuda()
    return True


@functools.cache
def require_cuda() -> None:
    """Raise unless there is a GPU that kernels can be compiled for and run on."""
    if importlib.util.find_spec("numba_cuda") is None:
        raise RuntimeError(f"backend='cuda' needs the package numba-cuda; {_INSTALL}")
    from numba import cuda

    if cuda.config.ENABLE_CUDASIM:
        return
    from numba.cuda.cudadrv.driver import driver

    if not driver.is_available or not len(cuda.gpus):
        reason = " ".join(str(cuda.cuda_error() or "no GPU was found").split())
        raise RuntimeError(f"backend='cuda' needs an NVIDIA GPU and its driver: {reason}; use backend='cpu' without")
    try:
        from numba.cuda.cudadrv import nvvm

        nvvm.NVVM()
    except Exception as error:
        raise RuntimeError(f"backend='cuda' needs the CUDA toolkit's NVVM ({error}); {_INSTALL}") from error
