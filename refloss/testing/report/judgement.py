"""A judgement with its faces: a table, a page, JUnit XML, and what a notebook shows."""

from __future__ import annotations

import importlib.metadata
import io
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import refloss
from refloss.testing import verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from refloss.testing.verdict import CaseVerdict

_WIDTH = 120


class Judgement(verdict.Judgement):
    """All that was found about a candidate: str() is the table that `refloss compare` prints, html() the report."""

    # What finds and shows is imported when it is asked for: a judgement alone is light.

    @classmethod
    def of(cls, cases: Iterable[CaseVerdict], compute_dtype: str | None = None, **facts: Any) -> Judgement:
        """Of verdicts, with what it was found with; facts are fields."""
        return cls(tuple(cases), compute_dtype, environment=environment(), **facts)

    def __str__(self) -> str:
        from rich.console import Console

        from refloss.testing.report import table

        console = Console(file=io.StringIO(), width=_WIDTH, highlight=False, color_system=None)
        with console.capture() as captured:
            table.show(self, console)
        return captured.get().rstrip("\n")

    def html(self, path: str | Path) -> None:
        """Write the report, one file that needs nothing else."""
        from refloss.testing.report import page

        page.write(Path(path), self)

    def junit(self, path: str | Path) -> None:
        """Write JUnit XML, which every CI system reads."""
        from refloss.testing.report import junit

        junit.write(Path(path), self)

    def _repr_html_(self) -> str:
        """The report within a notebook, in a frame of its own."""
        from markupsafe import escape

        from refloss.testing.report import page

        frame = 'sandbox="allow-scripts" style="width:100%;height:80vh;border:0"'
        return f'<iframe {frame} srcdoc="{escape(page.render(self))}"></iframe>'


def environment() -> dict[str, str]:
    """The versions of what judges, and the machine."""
    packages = {name: importlib.metadata.version(name) for name in ("numba", "numpy")}
    return {
        "refloss": refloss.__version__,
        **packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
