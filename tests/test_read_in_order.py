"""Pages that tell what to type, followed in order from an empty folder, as their readers do it.

What is saved, typed and changed is what the page says, and what is printed has the lines that it shows. The environment
that it begins with is that of the tests.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells of its own")
INSTALLATION = ["python3 -m venv .venv", ". .venv/bin/activate", 'pip install ".[testing]"']
PROGRAMS = {"refloss": "-m refloss", "pytest": "-m pytest -p no:cacheprovider", "python": ""}


class Reader:
    """Who has nothing but a shell and an editor."""

    def __init__(self, home: Path) -> None:
        self._home = self._folder = home
        self._files: list[Path] = []
        self._printed = ""
        programs = home / ".bin"
        programs.mkdir()
        for name, module in PROGRAMS.items():
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
            program.chmod(0o755)
        found = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
        self._environment = os.environ | found | {"HOME": str(home)}

    def follow(self, page: str, start: str = "", end: str = "\0") -> None:
        """Do what a page says, from one heading to another."""
        text = Path(page).read_text()
        told = text[text.index(start) :].partition(end)[0].split("```")
        for prose, block in zip(told[::2], told[1::2], strict=False):
            language, _, code = block.partition("\n")
            names = re.findall(r"[Ss]ave (?:this|it)\s+as\s+`([\w.]+)`", prose)
            if language == "python" and names:
                self._save(names[-1], code)
            elif language == "python":
                self._change(code)
            elif language == "sh":
                self._type("".join(line for line in code.splitlines(True) if line.strip() not in INSTALLATION))
            elif language == "text":
                self._compare(code)

    def _save(self, name: str, code: str) -> None:
        self._files.append(self._folder / name)
        self._files[-1].write_text(code)

    def _change(self, line: str) -> None:
        """Put a line in the place of the one that gives the same names a value, wherever that is."""
        names = line.partition(" = ")[0]
        lines = [(file, each) for file in self._files for each in file.read_text().splitlines(keepends=True)]
        ((file, old),) = ((file, each) for file, each in lines if each.startswith(f"{names} = "))
        file.write_text(file.read_text().replace(old, line))

    def _type(self, commands: str) -> None:
        script = f"cd {shlex.quote(str(self._folder))}\n{commands}pwd > ~/.folder\n"
        run = subprocess.run(["sh", "-c", script], env=self._environment, capture_output=True, text=True, check=True)
        self._printed = run.stdout + run.stderr
        self._folder = Path((self._home / ".folder").read_text().strip())

    def _compare(self, shown: str) -> None:
        """Each line that the page shows is printed, in this order; … is what it leaves out."""
        printed = iter([without_digits(line) for line in self._printed.splitlines()])
        for line in map(without_digits, shown.splitlines()):
            beginning, cut, _ = line.partition("…")
            if line and line != "…":
                assert any(each.startswith(beginning) if cut else each == line for each in printed), (
                    line + self._printed
                )


def without_digits(line: str) -> str:
    """A line without what another libm may change, and without what pytest makes of it in a narrow terminal."""
    line = re.sub(r" - refloss\..*|\s*\[ *\d+%\]", "", line)
    line = re.sub(r"\d+ (of \d+ elements, the worst at) \[[\d, ]+\]", r"# \1 []", line)
    line = re.sub(r"-?\d+\.\d+(e[-+]?\d+)?|-?\d+e[-+]?\d+", "#", line)
    return re.sub(r" \d+ #", " # #", " ".join(line.split()))


def test_the_tutorial_leads_from_two_mistakes_to_a_kernel_that_is_right(tmp_path: Path) -> None:
    Reader(tmp_path).follow("docs/tutorial.md")
    # In a folder of its own: nothing of the reader's is where refloss's tests are.
    assert {path.name for path in tmp_path.iterdir()} == {".bin", ".folder", "my_kernel"}


def test_the_page_on_properties(tmp_path: Path) -> None:
    Reader(tmp_path).follow("docs/metamorphic.md")


def test_golden_values_of_one_s_own_shapes(tmp_path: Path) -> None:
    Reader(tmp_path).follow("docs/golden_format.md", "## Your own shapes", "In Python the same is")
