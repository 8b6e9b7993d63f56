"""The frameworks that are known by name: how their arrays are made, and what has to be set for a case.

None is imported before its name is given.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case


def _as_it_is(_: Case) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


class Framework(NamedTuple):
    """How arrays of a framework are made of NumPy's, and a context for all that is done with a case."""

    to_native: Callable[[np.ndarray], Any] | None = None
    around: Callable[[Case], contextlib.AbstractContextManager[Any]] = _as_it_is


def _of_torch() -> Framework:
    torch = importlib.import_module("torch")

    def tensor(array: np.ndarray) -> Any:
        if array.dtype == ml_dtypes.bfloat16:  # of which torch's reading of NumPy does not know
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    return Framework(tensor)


def _of_jax() -> Framework:
    jax = importlib.import_module("jax")
    # Its place before version 0.8.
    home = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")

    def around(case: Case) -> contextlib.AbstractContextManager[Any]:
        """64 bits where a case has them; all others are computed as JAX's users compute."""
        wide = any(value.dtype == np.float64 for value in case.inputs.values())
        setting: contextlib.AbstractContextManager[Any] = home.enable_x64(wide)
        return setting

    return Framework(importlib.import_module("jax.numpy").asarray, around)


FRAMEWORKS: dict[str, Callable[[], Framework]] = {"numpy": Framework, "torch": _of_torch, "jax": _of_jax}


def framework(name: str) -> Framework:
    """A framework by its name; one that is not installed is a ValueError."""
    if name not in FRAMEWORKS:
        raise ValueError(f"unknown framework {name}; there are {', '.join(FRAMEWORKS)}")
    try:
        return FRAMEWORKS[name]()
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error
