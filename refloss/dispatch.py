"""The only place that chooses a device."""

from __future__ import annotations

from types import ModuleType

from refloss.arrays import choice

BACKENDS = ("auto", "cpu", "cuda")


def launcher(backend: str) -> ModuleType:
    """The module that runs kernels for a backend; imported here, because it brings in Numba."""
    if choice(backend, "backend", BACKENDS) == "cuda":
        raise RuntimeError("backend='cuda': this version of refloss has no CUDA kernels; use backend='cpu'")
    from refloss.kernels import launch

    return launch
