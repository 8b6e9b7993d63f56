"""What is shown of long work: tables, and how far it is."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from refloss import compilation
from refloss.commands import telling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Seconds between two lines where nothing can be drawn, in a log for example.
PERIOD = 10.0

_elsewhere: ContextVar[Callable[[int, int], None] | None] = ContextVar("elsewhere", default=None)


@contextlib.contextmanager
def told_to(report: Callable[[int, int], None]) -> Iterator[None]:
    """Have progress yield this report, and show nothing itself."""
    token = _elsewhere.set(report)
    try:
        yield
    finally:
        _elsewhere.reset(token)


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """What is done so far, on stderr, and whether a kernel is being compiled; yields report(done, in all).

    It is a bar on a terminal, and elsewhere a line every ten seconds; nothing where nothing is to be said.
    """
    elsewhere = _elsewhere.get()
    if elsewhere is not None:
        yield elsewhere
        return
    if telling.is_quiet():
        yield lambda _done, _total: None
        return
    console = Console(stderr=True)
    with (_bar if console.is_terminal else _lines)(unit, console) as report:
        yield report


@contextlib.contextmanager
def _bar(unit: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), _Compiling())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


class _Compiling(ProgressColumn):
    def render(self, _: Task) -> Text:
        return Text(_compiling())


@contextlib.contextmanager
def _lines(unit: str, _: Console) -> Iterator[Callable[[int, int], None]]:
    counts, counting, ended = [0, 0], threading.Lock(), threading.Event()

    def report(done: int, total: int) -> None:
        with counting:  # threads report as well
            counts[:] = counts[0] + done, total

    def tell() -> None:
        while not ended.wait(PERIOD):
            done, total = counts
            words = f"{unit}: {done} of {total}" if total else unit, _compiling()
            with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, closed, or None
                print(", ".join(filter(None, words)), file=sys.stderr, flush=True)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield report
    finally:
        ended.set()
        thread.join()


def _compiling() -> str:
    return "compiling kernels" if compilation.is_running() else ""


def printing_console(width: int) -> Console:
    """A console on stdout that cuts nothing off where neither a terminal nor COLUMNS sets a width."""
    is_set = (sys.stdout is not None and sys.stdout.isatty()) or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if is_set else width, highlight=False)
