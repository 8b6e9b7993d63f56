"""How much a command says: what people read, nothing but errors (-q), or also what is done meanwhile (-v)."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refloss.messages import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOG = logging.getLogger("refloss")


class _Asked:
    """What has been asked for on this command line, and what is undone at its end."""

    def __init__(self) -> None:
        self.verbose = self.quiet = False
        self.at_end = contextlib.ExitStack()


_asked = _Asked()


def is_quiet() -> bool:
    """Whether only errors are told, and what is asked for as JSON."""
    return _asked.quiet


def is_verbose() -> bool:
    """Whether it is told what is done, and where an error comes from."""
    return _asked.verbose


def say(*lines: str) -> None:
    """What a command has to tell people, on stdout."""
    if not _asked.quiet:
        print(*lines, sep="\n")


def note(text: str) -> None:
    """What people should know beside it, on stderr."""
    if not _asked.quiet:
        print(f"refloss: {printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def one_command() -> Iterator[None]:
    """The time of one command line: at its end nothing has been asked for."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _LOG.info("%.2f seconds in all", time.perf_counter() - start)
        _asked.at_end.close()
        _asked.verbose = _asked.quiet = False


def _be_verbose(context: typer.Context, asked: bool) -> None:
    if not asked or _asked.verbose or context.resilient_parsing:  # as where a shell completes
        return
    if _asked.quiet:
        raise ValueError("-v and -q: give one of them")
    _asked.verbose = True
    handler = logging.StreamHandler()
    handler.addFilter(_once())
    handler.setFormatter(_OneLine("refloss: %(message)s"))
    _LOG.addHandler(handler)
    _asked.at_end.callback(_LOG.removeHandler, handler)
    _asked.at_end.callback(_LOG.setLevel, _LOG.level)
    _LOG.setLevel(logging.INFO)
    _asked.at_end.enter_context(_compilation_told())


def _be_quiet(asked: bool) -> None:
    if asked and _asked.verbose:
        raise ValueError("-v and -q: give one of them")
    _asked.quiet = _asked.quiet or asked


def _once() -> Callable[[logging.LogRecord], bool]:
    """Whether something has not been told yet: a file is read for each of its arrays."""
    told: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        before = len(told)
        told.add(record.getMessage())
        return len(told) > before

    return is_new


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _everywhere(
    verbose: Annotated[
        bool,
        typer.Option(
            "-v",
            "--verbose",
            callback=_be_verbose,
            expose_value=False,
            help="Say on stderr which files are read and written, what is compiled, how long it took; show tracebacks.",
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "-q",
            "--quiet",
            callback=_be_quiet,
            expose_value=False,
            help="Print nothing but errors, and what --json asks for; the exit status tells the rest.",
        ),
    ] = False,
) -> None:
    """Take what every command takes."""


def options() -> list[Any]:
    """What every command takes, as Click has it."""
    bare = typer.Typer(add_completion=False)
    bare.command()(_everywhere)
    return list(typer.main.get_command(bare).params)


def _compilation_told() -> contextlib.AbstractContextManager[Any]:
    """Log every kernel that Numba compiles meanwhile."""
    from numba.core import event

    class Compiled(event.Listener):
        """What one kernel calls is compiled within it, by the same thread."""

        def __init__(self) -> None:
            self._of_thread = threading.local()

        def _starts(self) -> list[float]:
            starts: list[float] = self._of_thread.__dict__.setdefault("starts", [])
            return starts

        def on_start(self, _: Any) -> None:
            self._starts().append(time.perf_counter())

        def on_end(self, ended: Any) -> None:
            seconds = time.perf_counter() - self._starts().pop()
            if not self._starts():
                kernel = ended.data["dispatcher"].py_func
                _LOG.info("compiled %s.%s in %.2f seconds", kernel.__module__, kernel.__name__, seconds)

    listening: contextlib.AbstractContextManager[Any] = event.install_listener("numba:compile", Compiled())
    return listening
