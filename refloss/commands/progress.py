"""What a terminal shows: tables, and bars of long work."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, where that is a terminal; yields report(done, in all)."""
    console = Console(stderr=True)
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(unit, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, advance=done, total=total)

        yield report


def printing_console(width: int) -> Console:
    """A console on stdout that cuts nothing off where no terminal sets a width."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(width=None if terminal else width, highlight=False)
