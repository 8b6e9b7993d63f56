"""Docstrings of refloss as reStructuredText: they are prose with formulas, in which nothing is markup."""

from __future__ import annotations

import re
import textwrap
from itertools import groupby
from typing import TYPE_CHECKING

from docs._ext.formulas import as_tex

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

# Sections that have an entry for each name, and the others, which are prose.
_ENTRIES = ("Args", "Attributes", "Raises")
_SECTIONS = (*_ENTRIES, "Returns", "Edges")
_PAGE = re.compile(r"\bdocs/(\w+)\.md\b")
_NAME = re.compile(r"\brefloss(?:\.\w+)+")


def as_rst(lines: Iterable[str], names: Collection[str] = ()) -> list[str]:
    """The lines of a docstring with markup: formulas as blocks, sections as headings, links to pages and to names."""
    written: list[str] = []
    for section, body in _sections(list(lines)):
        if section:
            written += [f".. rubric:: {section}", ""]
        written += _entries(section, body, names) if section in _ENTRIES else _prose(body, names)
    return written


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Names of sections and what stands in them; what comes before the first has none."""
    name, body = "", list[str]()
    for line in lines:
        if line.endswith(":") and line[:-1] in _SECTIONS:
            yield name, body
            name, body = line[:-1], []
        elif name and line and not line.startswith(" "):
            yield name, body
            name, body = "", [line]
        else:
            body.append(line)
    yield name, body


def _entries(section: str, lines: list[str], names: Collection[str]) -> Iterator[str]:
    """A list of definitions; what is no entry stays a sentence."""
    whole = textwrap.dedent("\n".join(lines)).strip()
    # Errors follow each other like sentences, everything else line by line.
    ends = r"(?<=\.)\s(?=\w+Error: )" if section == "Raises" else r"\n(?! )"
    for entry in re.split(ends, whole):
        text = " ".join(entry.split())
        found = re.match(r"([\w, ]+): (.*)", text)
        if found is None:
            yield from (marked(text, names), "")
        else:
            terms = ", ".join(f"``{name}``" for name in found[1].split(", "))
            yield from (terms, f"    {marked(found[2], names)}", "")


def _prose(lines: list[str], names: Collection[str]) -> Iterator[str]:
    """Paragraphs, lists, and formulas, which are paragraphs that begin with four spaces."""
    text = textwrap.dedent("\n".join(lines)).strip("\n").split("\n")
    for blank, group in groupby(text, key=lambda line: not line.strip()):
        paragraph = list(group)
        if blank:
            yield ""
        elif paragraph[0].startswith("    "):
            formula = textwrap.dedent("\n".join(paragraph)).split("\n")
            yield from (".. math::", "", f"   {as_tex(formula)}")
        elif paragraph[0].startswith("- "):
            yield from (marked(line, names) for line in paragraph)
        else:
            yield marked(" ".join(line.strip() for line in paragraph), names)
    yield ""


def marked(text: str, names: Collection[str] = ()) -> str:
    """A piece of prose; what is between backticks is code, whether there are one or two of them."""
    parts = re.split(r"``?([^`]+)``?", text)
    return "".join(f"``{part}``" if k % 2 else _linked(part, names) for k, part in enumerate(parts))


def _linked(text: str, names: Collection[str]) -> str:
    text = re.sub(r"([*|\\])", r"\\\1", text)
    text = re.sub(r"(?<=\w)_(?!\w)", r"\\_", text)
    text = _PAGE.sub(r":doc:`/\1`", text)
    return _NAME.sub(lambda found: f":py:obj:`{found[0]}`" if found[0] in names else found[0], text)
