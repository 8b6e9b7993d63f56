"""Compilation that Ctrl-C does not break off halfway.

Numba is not made for exceptions that come from nowhere: one that is raised while LLVM calls back is swallowed, or
becomes another one, and a registry that is filled halfway stays so. So a kernel is compiled by a thread of its own, to
the end, and whoever has called it only waits: a KeyboardInterrupt is raised at once, where it does no harm, and a later
call finds the kernel made. Threads that work for a call which is interrupted give up waiting too.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# Of a thread's call and of the calls that it is in: no longer empty when nobody waits for what the thread computes.
stops: ContextVar[tuple[list[bool], ...]] = ContextVar("stops", default=())

# Held while machine code is written to disk: a process that ends without more ado takes it first.
writing = threading.Lock()

_THREAD_NAME = "refloss compiles"
# Between two looks at them, in seconds. Windows has Ctrl-C wait for it as well.
_PATIENCE = 0.1


class Stopped(BaseException):
    """Raised in a thread that works for a call which has been interrupted."""


def aside(compiling: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A dispatcher's compile method, done by a thread of its own wherever that is possible."""

    @functools.wraps(compiling)
    def wait_for(signature: Any) -> Any:
        future: Future[Any] = Future()
        if not _must_stay() and _started(future, compiling, signature):
            while wait([future], _PATIENCE).not_done:
                if any(stops.get()):
                    raise Stopped
            return future.result()
        return compiling(signature)

    return wait_for


def _must_stay() -> bool:
    """Whether this thread has something that the other one may need: Numba's lock, or a module that it is importing."""
    from numba.core.compiler_lock import global_compiler_lock  # here, because it takes long to import

    if global_compiler_lock.is_locked():  # type: ignore[no-untyped-call]
        return True
    specifications = [getattr(module, "__dict__", {}).get("__spec__") for module in list(sys.modules.values())]
    return any(getattr(specification, "_initializing", False) for specification in specifications)


def _started(future: Future[Any], function: Callable[[Any], Any], argument: Any) -> bool:
    """Whether there is a thread now that computes something; none starts while Python ends."""
    try:
        threading.Thread(target=settle, args=(future, function, argument), name=_THREAD_NAME).start()
    except RuntimeError:
        return False
    return True


def settle(future: Future[Any], function: Callable[..., Any], *arguments: Any) -> None:
    """Compute what a future is of, unless that is cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*arguments)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def is_running() -> bool:
    """Whether a kernel is being compiled, or read from disk."""
    return any(thread.name == _THREAD_NAME for thread in threading.enumerate())


def abandon(status: int) -> None:
    """End the process at once if a kernel is being compiled that nobody waits for; its file is whole or missing."""
    if is_running():
        writing.acquire()
        os._exit(status)
