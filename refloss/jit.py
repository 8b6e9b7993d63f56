"""Every Numba option of refloss, in one place.

Kernels are compiled on first use for the types they meet and kept on disk. Scalars are inlined into the kernels that
call them, so they need no cache entry of their own; CUDA kernels call the same scalars, which Numba compiles for the
GPU then. There is no fastmath anywhere: the bits of a result are part of the
contract, and LLVM may only vectorise what keeps them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from numba.core import config
from numba.core.caching import FunctionCache, IndexDataCacheFile

if TYPE_CHECKING:
    from collections.abc import Callable


# What is only called from compiled code needs no way in from Python, and compiles a fifth faster without; Python must
# not call it, unless CUDA is simulated: then kernels are Python.
_INSIDE: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": not getattr(config, "ENABLE_CUDASIM", False),
    "no_cfunc_wrapper": True,
}


def scalar(function: Callable[..., Any]) -> Any:
    """Compile a scalar function lazily and inline it into its callers."""
    return numba.njit(forceinline=True, **_INSIDE)(function)


def helper(function: Callable[..., Any], name: str = "") -> Any:
    """Compile a function that kernels call once a row or less; LLVM decides whether to inline it."""
    return numba.njit(**_INSIDE)(_named(function, name))


def kernel(function: Callable[..., Any], name: str = "") -> Any:
    """Compile a loop over arrays, without the interpreter lock and cached on disk."""
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(_named(function, name))
    # Where no folder can be written to, a kernel is compiled anew in each process.
    with contextlib.suppress(RuntimeError):
        dispatcher._cache = _PackageCache(function)
    return dispatcher


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make each thing once, also for threads that ask for it at the same time, as the layers of a head do."""
    lock, made = threading.Lock(), functools.cache(make)

    @functools.wraps(make)
    def locked(*arguments: Any) -> Any:
        with lock:
            return made(*arguments)

    return locked


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function that is defined inside another one, over functions that are handed to it, has to have a name.

    Its machine code, and its place in the cache, are called after its qualified name. Two loops that different
    processes have cached under one name would be linked as one in a third process: the first to come, for both.
    """
    if name:
        function.__qualname__ += f".{name}"
    return function


class _PackageCache(FunctionCache):
    """Numba's disk cache, made stale by a change in any file of the package.

    Numba looks at the kernel's own file only, and would go on serving a kernel whose scalars have changed elsewhere.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path, filename_base=self._impl.filename_base, source_stamp=_package_stamp()
        )

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        """Numba's key without its hash of the closure, which differs between processes: name and stamp identify it."""
        return signature, codegen.magic_tuple()


@functools.cache
def _package_stamp() -> tuple[tuple[str, int, int], ...]:
    root = Path(__file__).parent
    files = sorted(
        [Path(__file__), *(path for part in ("numerics", "kernels", "losses") for path in root.glob(f"{part}/*.py"))]
    )
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
