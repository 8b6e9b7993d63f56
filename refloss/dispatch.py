"""The only place that chooses a device."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from refloss.arrays import choice

if TYPE_CHECKING:
    from types import ModuleType

BACKENDS = ("auto", "cpu", "cuda")


def launcher(backend: str, family: str) -> ModuleType:
    """The module that runs a family of kernels on a backend; imported here, because it brings in Numba."""
    if choice(backend, "backend", BACKENDS) == "cuda":
        raise RuntimeError("backend='cuda': this version of refloss has no CUDA kernels; use backend='cpu'")
    return importlib.import_module(f"refloss.kernels.launch_{family}")
