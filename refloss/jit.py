"""Every Numba option of refloss, in one place, and the names of what is compiled.

Kernels are compiled on first use for the types they meet and kept on disk (``refloss.disk_cache``) until something
changes that their machine code depends on (``refloss.origin``). Scalars are inlined into the kernels that call them, so
they need no cache entry of their own; CUDA kernels call the same scalars, which Numba compiles for the GPU then. There
is no fastmath anywhere: the bits of a result are part of the contract, and LLVM may only vectorise what keeps them.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import threading
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
from numba import types
from numba.core import config
from numba.core.compiler_lock import global_compiler_lock

from refloss import inside
from refloss.compilation import aside
from refloss.disk_cache import DiskCache
from refloss.origin import Origin, closure, origin, parts

if TYPE_CHECKING:
    from collections.abc import Callable

# Python must not call what is only called from compiled code, unless CUDA is simulated: then kernels are Python.
_SIMULATED = getattr(config, "ENABLE_CUDASIM", False)
_LOOP: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True}
_INSIDE = _LOOP | {
    "no_cpython_wrapper": not _SIMULATED,
    "pipeline_class": None if _SIMULATED else inside.Compiler,
}

# Held while something is made or named; at a fork as well, so that a child never finds either half done.
_making = threading.RLock()


def scalar(function: Callable[..., Any]) -> Any:
    """Compile a scalar function lazily and inline it into its callers."""
    return _for_any_integer(numba.njit(forceinline=True, **_INSIDE)(function))


def helper(function: Any, name: str = "") -> Any:
    """Compile a function that kernels call once a row or less; LLVM decides whether to inline it."""
    _named(function, name)
    return _for_any_integer(numba.njit(**_INSIDE)(function))


def kernel(function: Any, name: str = "") -> Any:
    """Compile a loop over arrays, without the interpreter lock and kept on disk."""
    source = _named(function, name)
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return _refused
    dispatcher: Any = numba.njit(nogil=True, **_LOOP)(function)
    dispatcher.compile = aside(_without_collecting(dispatcher.compile))
    if source.complete:
        # Where no folder can be written to, a kernel is compiled anew in each process.
        with contextlib.suppress(RuntimeError, OSError):
            dispatcher._cache = DiskCache(function, source)
    return dispatcher


def _for_any_integer(dispatcher: Any) -> Any:
    """Have a function compiled for integers, and not once more for each that a caller has written down."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return dispatcher
    template = dispatcher.get_call_template

    def get_call_template(arguments: Any, keywords: Any) -> Any:
        return template(tuple(map(_any_integer, arguments)), {name: _any_integer(of) for name, of in keywords.items()})

    dispatcher.get_call_template = get_call_template
    return dispatcher


def _any_integer(kind: Any) -> Any:
    return types.unliteral(kind) if isinstance(kind, types.IntegerLiteral) else kind


def _without_collecting(compiling: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A dispatcher's compile method without the search for cycles, which would take a fifth of its time."""

    @functools.wraps(compiling)
    def compile_at_once(signature: Any) -> Any:
        # One thread compiles at a time.
        with global_compiler_lock:
            was_enabled = gc.isenabled()
            gc.disable()
            try:
                return compiling(signature)
            finally:
                if was_enabled:
                    gc.enable()

    return compile_at_once


def _refused(*_: Any) -> Any:
    # Intrinsics, such as the fused multiply-add, are instructions and cannot run in Python.
    raise RuntimeError("refloss compiles its kernels, and NUMBA_DISABLE_JIT forbids that: unset NUMBA_DISABLE_JIT")


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make each thing once, also for threads that ask for it at the same time, as the layers of a head do."""
    made: dict[Any, Any] = {}

    @functools.wraps(make)
    def get(*arguments: Any) -> Any:
        found = made.get(arguments)
        if found is None:
            with _making:
                if arguments not in made:
                    made[arguments] = make(*arguments)
                found = made[arguments]
        return found

    return get


class _Claim(NamedTuple):
    """What a name stands for, and each state that its source has been in, as modules are edited and loaded again."""

    parts: tuple[str, ...]
    stamps: list[str]


_claims: dict[str, _Claim] = {}


def claim(name: str, *values: Any, stamp: str = "") -> int:
    """Take a name for a thing that is made of functions and constants.

    Returns:
        Which state of the source this is: 0 the first time and whenever the same is made again, 1 after an edit, ...

    Raises:
        ValueError: something else has that name.
    """
    claimed = parts(values)
    with _making:
        known = _claims.setdefault(name, _Claim(claimed, []))
        if known.parts != claimed:
            first, second = sorted(set(known.parts) - set(claimed)), sorted(set(claimed) - set(known.parts))
            raise ValueError(
                f"two loops are named {name!r}, one over {', '.join(first) or 'less'}, one over"
                f" {', '.join(second) or 'less'}: they would share machine code; give each a name of its own"
            )
        if stamp not in known.stamps:
            known.stamps.append(stamp)
        return known.stamps.index(stamp)


@dataclass(frozen=True)
class Description:
    """What a loss brings to its family's loops, whose machine code is called by its name.

    Raises:
        ValueError: another description of the family has that name.
    """

    name: str

    def __post_init__(self) -> None:
        claim(f"{type(self).__name__} {self.name}", *(getattr(self, part.name) for part in fields(self)))


def _named(function: Any, name: str) -> Origin:
    """Give a function its qualified name, which nothing else may have.

    Its machine code, and its place in the cache, are called after that name, and the number that Numba adds to it
    starts anew in every process. So two loops that different processes have cached under one name would be linked as
    one in a third process: the first to come, for both. The same goes for what a module held before it was edited and
    loaded again.
    """
    if name:
        function.__qualname__ += f".{name}"
    source = origin(function)
    state = claim(f"{function.__module__}.{function.__qualname__}", *closure(function), stamp=source.stamp)
    if state:
        # What is made over this function goes by the name that was claimed, or it would be another one after an edit.
        function.claimed_name = function.__qualname__
        function.__qualname__ += f".{state}"
    return source


def _hold() -> None:
    """Wait until nothing is being made or compiled: a child that is forked then finds Numba and LLVM as they should be.

    A thread that compiles does not go on in the child, and neither its locks nor its work would ever be finished there.
    """
    _making.acquire()
    global_compiler_lock.acquire()


def _let_go() -> None:
    global_compiler_lock.release()
    _making.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
