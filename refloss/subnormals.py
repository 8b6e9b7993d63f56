"""Numbers too small for a full exponent, where a caller has told the processor to take them for zero.

``torch.set_flush_denormal(True)`` does that, and so does code compiled with ``-ffast-math``. It holds for one thread,
and for threads that it starts. The bits of a result must not depend on it: a loss, a verdict and the cases of a corpus
do their work with subnormals kept.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

# From its bits: what reads a literal may flush it as well. The product below is not one of constants, which Python's
# compiler would multiply.
_SMALLEST: float = struct.unpack("<d", struct.pack("<q", 1))[0]
_ONE = 1.0
# More than any fenv_t has.
_ENVIRONMENT_BYTES = 512


def are_flushed() -> bool:
    """Whether this thread takes subnormal numbers for zero, before or after an operation."""
    return _SMALLEST * _ONE == 0.0


def kept(function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    """Call a function with subnormals kept: in C's default floating-point environment, where this thread's is another.

    Raises:
        RuntimeError: they are flushed, and this machine does not let us change that.
    """
    if not are_flushed():
        return function(*arguments, **keywords)
    own = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
    library = _c_library()
    if library is not None:
        library.fegetenv(own)
        library.fesetenv(_default_environment(library))
    try:
        if are_flushed():
            raise RuntimeError(
                "this thread flushes subnormal numbers to zero, which changes results: turn that off, for example by"
                " torch.set_flush_denormal(False)"
            )
        return function(*arguments, **keywords)
    finally:
        if library is not None:
            library.fesetenv(own)


def keeping(function: Callable[P, R]) -> Callable[P, R]:
    """A function that does its work with subnormals kept, whoever calls it."""

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        return kept(function, *arguments, **keywords)

    return call


def keep() -> None:
    """Let a thread that we have started keep subnormals from now on; it has the habits of the one that started it."""
    library = _c_library() if are_flushed() else None
    if library is not None:
        library.fesetenv(_default_environment(library))


def _c_library() -> ctypes.CDLL | None:
    """The C library of this process, if it can change the floating-point environment."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "fegetenv") and hasattr(library, "fesetenv") else None


def _default_environment(library: ctypes.CDLL) -> ctypes.c_void_p:
    """FE_DFL_ENV, a macro: the address of an object on macOS, elsewhere the address −1."""
    try:
        return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(library, "_FE_DFL_ENV")))
    except ValueError:
        return ctypes.c_void_p(-1)
