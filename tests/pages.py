"""What pages tell to type, run as a reader would: from the first block to the last, in one folder."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from refloss.testing.judging.callables import GoldenCase, select

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)


class Block(NamedTuple):
    """A piece of a page that is no prose."""

    language: str
    text: str
    before: str  # the page up to it

    @property
    def file(self) -> str | None:
        """The name under which its reader saves it."""
        paragraph = self.before.rstrip().rpartition("\n\n")[2]
        found = re.search(r"\bsave .*\bas `(\w+\.\w+)`", " ".join(paragraph.split()), re.IGNORECASE)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    """What stands between three backticks, within lists as well."""
    text = (ROOT / page).read_text("utf-8")
    return [Block(found[2], found[3], text[: found.start()]) for found in _BLOCK.finditer(text)]


def run(page: str, languages: Iterable[str], given: Mapping[str, Any] | None = None, case: str = "") -> dict[str, Any]:
    """Run the blocks of some languages in the current folder; the names that they leave.

    Args:
        page: its path from the root.
        languages: "python" and "sh".
        given: names that the page leaves to its reader.
        case: the id of a golden case, for tests that ask for one.
    """
    names: dict[str, Any] = {"__name__": "page", **(given or {})}
    for block in blocks(page):
        if block.language not in languages:
            continue
        if block.file is not None:
            Path(block.file).write_text(block.text, "utf-8")
        elif block.language == "python":
            before = dict(names)
            exec(compile(block.text, page, "exec"), names)
            for name, test in names.items():
                if name.startswith("test_") and before.get(name) is not test:
                    tested(test, case)
        else:
            typed(block.text)
    return names


def tested(test: Any, case: str) -> None:
    """Call a test as pytest would, with a case where it asks for one; by Hypothesis few times."""
    if hasattr(test, "hypothesis"):
        from hypothesis import settings

        test = settings(max_examples=5, database=None, deadline=None)(test)
    arguments = [GoldenCase(each) for each in select(cases=case)] if inspect.signature(test).parameters else []
    test(*arguments)


def typed(commands: str) -> None:
    """Run what is typed into a shell, by this Python and with this refloss."""
    programs = "".join(f'{name}() {{ "$PYTHON" -m {name} "$@"; }}\n' for name in ("refloss", "pytest"))
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": paths, "REFLOSS": str(ROOT)}
    command = ["bash", "-euc", programs + commands]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise AssertionError(f"{commands}\n{ran.stdout}{ran.stderr}")
