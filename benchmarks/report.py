"""Tables, to the terminal and into the documentation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

# A file or a pipe has no width of its own; the tables want this much.
console = Console(width=None if sys.stdout.isatty() else 160)


class Aim(NamedTuple):
    """What was measured and what it is held against: at least (or at most) a bound."""

    measured: float
    bound: float
    unit: str
    at_least: bool = True

    def holds(self) -> bool:
        """Whether the measured number keeps to the bound."""
        return self.measured >= self.bound if self.at_least else self.measured < self.bound

    def cells(self) -> tuple[str, str]:
        """The bound and the verdict."""
        return f"{'≥' if self.at_least else '<'} {self.bound:g} {self.unit}", "yes" if self.holds() else "no"


class Table(NamedTuple):
    """Rows of text under a title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self) -> None:
        """Print to the terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index < 2 else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = ["---" if index < 2 else "---:" for index in range(len(self.columns))]
        lines = [" | ".join(cells).strip() for cells in (self.columns, rule, *self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(f"| {line} |" for line in lines)


def publish(
    marker: str, introduction: str, tables: Sequence[Table], conclusion: str, write: bool, document: Path = PAGE
) -> None:
    """Print tables and, on demand, put them between the marker's comments in a page of the documentation."""
    console.print(introduction)
    for table in tables:
        table.show()
    if conclusion:
        console.print(conclusion)
    if not write:
        return
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    page = document.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{document.name} must hold {begin} and {end} once each")
    head, rest = page.split(begin)
    tail = rest.split(end)[1]
    parts = [introduction, *(table.markdown() for table in tables), conclusion]
    body = "\n\n".join(part for part in parts if part)
    document.write_text(f"{head}{begin}\n\n{body}\n\n{end}{tail}", encoding="utf-8")


def wants_write(description: str | None) -> bool:
    """Parse the command line, whose only option is --write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    return bool(parser.parse_args().write)
