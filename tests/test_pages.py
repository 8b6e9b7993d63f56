"""Pages of the documentation: tables are tables, links lead somewhere, and every page can be found."""

import re
from pathlib import Path

import pytest

PAGES = [
    Path("README.md"),
    *map(Path, ("CONTRIBUTING.md", "SECURITY.md", "SUPPORT.md")),
    *sorted(Path("docs").rglob("*.md")),
]


def prose(page):
    """The lines of a page that are no code."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).split("\n")


def links(page):
    """Where a page links to within the repository: files and headings."""
    targets = re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page)))
    return [target.partition("#")[::2] for target in targets if not target.startswith("http")]


def headings(page):
    """The names of a page's headings in links."""
    found = (line.lstrip("#").strip().lower() for line in prose(page) if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in found}


def has_rule(lines, number):
    """Whether the line below the one that begins a table makes it one."""
    return re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", lines[number + 1])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_table_has_a_head(page):
    lines = ["", *prose(page), ""]
    first = [k for k in range(1, len(lines)) if lines[k].startswith("| ") and not lines[k - 1].startswith("|")]
    assert [lines[k] for k in first if not has_rule(lines, k)] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for name, heading in links(page):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not heading or heading in headings(target), (name, heading)


def test_every_page_is_found_from_the_first():
    found, ahead = set(), [Path("README.md")]
    while ahead:
        page = ahead.pop().resolve()
        if page not in found:
            found.add(page)
            ahead += [page.parent / name for name, _ in links(page) if name.endswith(".md")]
    assert {page.resolve() for page in PAGES} <= found
