"""docs/gauntlet.md: every mistake, who reported it, and what becomes of it.

python -m tests.gauntlet.table writes it; test_gauntlet.py holds that it is what would be written.
"""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.gauntlet.honest import (
    ALIGNMENTS,
    DETR,
    ELEMENTS,
    FOCAL,
    HONEST,
    IGNORING,
    LABELLED,
    LAYERED,
    REDUCED,
    ROWS,
    SOFTMAX,
)
from tests.gauntlet.mistakes import MISTAKES, Mistake
from tests.gauntlet.survey import broken_properties, found, is_right

PAGE = Path(__file__).parents[2] / "docs" / "gauntlet.md"
NOTHING = "—"

GROUPS: dict[tuple[str, ...], str] = {
    SOFTMAX: "softmax",
    LABELLED: "labelled",
    ROWS: "rows",
    IGNORING: "ignoring",
    ELEMENTS: "elements",
    (*ROWS, *ELEMENTS): "rows, elements",
    REDUCED: "reduced",
    tuple(HONEST): "all but heads that match",
    (*DETR, *FOCAL): "DETRs",
    (*DETR, *FOCAL, *LAYERED): "heads that match",
    LAYERED: "RT-DETRs",
    ALIGNMENTS: "alignments",
}

HEADING = (
    "mistake",
    "reported as",
    "functions",
    "golden cases",
    "dtypes",
    "properties",
    "the judge says first",
    "right",
)


class Row(NamedTuple):
    """A line of the table; its cells as they are written."""

    name: str
    report: str
    functions: str
    cases: str
    dtypes: str
    properties: str
    first: str
    right: str


def fixed(mistake: Mistake) -> tuple[str, str, str]:
    """The cells that nothing has to be computed for."""
    functions = GROUPS.get(mistake.functions) or ", ".join(f"`{name}`" for name in mistake.functions)
    return mistake.name, mistake.report, functions


def row(mistake: Mistake) -> Row:
    """What becomes of a mistake in all functions that it applies to; properties are those of the first."""
    everywhere = [found(mistake, function) for function in mistake.functions]
    rejected, cases = sum(each.failing for each in everywhere), sum(each.cases for each in everywhere)
    possible = len(everywhere) * len(mistake.dtypes)
    names = Counter(without_numbers(each.first) for each in everywhere if each.first)
    right = sum(is_right(mistake, each.first) for each in everywhere)
    properties = () if mistake.cases else broken_properties(mistake.kernel(mistake.functions[0]), mistake.functions[0])
    return Row(
        *fixed(mistake),
        f"{rejected} of {cases}",
        f"{sum(len(each.dtypes & {*mistake.dtypes}) for each in everywhere)} of {possible}",
        ", ".join(properties) or NOTHING,
        names.most_common(1)[0][0] if names else NOTHING,
        f"{right} of {len(everywhere)}",
    )


def numbered_row(number: int) -> Row:
    """The row of a mistake by its place; kernels are no arguments of a process."""
    return row(MISTAKES[number])


def without_numbers(name: str) -> str:
    """Words without the numbers of a case; a table's cells have no bars."""
    return re.sub(r" \(-?[\d.e+-]+\)", "", name).replace("|", "∣")


def page(rows: list[Row]) -> str:
    """All of it."""
    lines = [HEADING, ("---",) * len(HEADING), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    groups = "".join(f"- *{label}*: {', '.join(f'`{name}`' for name in names)}\n" for names, label in GROUPS.items())
    return f"{_INTRODUCTION}\n{table}\n## Groups of functions\n\n{groups}\n## Measured\n\n{summary(rows)}"


def rows_of(text: str) -> list[Row]:
    """The lines of a page's table."""
    cells = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [Row(*line) for line in cells[2:]]


def share(cell: str) -> tuple[int, int]:
    """n of m."""
    count, whole = cell.split(" of ")
    return int(count), int(whole)


def summary(rows: list[Row]) -> str:
    """How many mistakes are found, and how many have their name."""
    seen = [row for row in rows if share(row.cases)[0]]
    pairs = [share(row.dtypes) for row in rows]
    named = [share(row.right) for row in rows]
    reported = sum("#" in row.report for row in rows)
    wholly = [row.name for row, (right, all_of_them) in zip(rows, named, strict=True) if right == all_of_them]
    count, possible = sum(count for count, _ in pairs), sum(whole for _, whole in pairs)
    right, functions = sum(right for right, _ in named), sum(whole for _, whole in named)
    by_properties = sum(row.properties != NOTHING for row in rows)
    misnamed = [row.name for row in rows if row.name not in wholly]
    return (
        f"- {len(rows)} mistakes, {reported} of them with a public report.\n"
        f"- {len(seen)} are rejected by golden cases somewhere; of every function and dtype that a mistake can be made "
        f"in, some case rejects it in {count} of {possible} ({count / possible:.1%}).\n"
        f"- {by_properties} break a property.\n"
        f"- The judge's first words are right in {right} of {functions} functions ({right / functions:.1%}), and in "
        f"every function for {len(wholly)} of {len(rows)} mistakes ({len(wholly) / len(rows):.1%}).\n"
        f"- Not right in every function: {'; '.join(misnamed) or 'none'}.\n"
    )


_INTRODUCTION = """# The gauntlet

Kernels with one mistake each, put before the judge. Every mistake is one that somebody made: the second column has the
public report (repository#number), or says where else it comes from. They are honest NumPy kernels with one step
replaced (`tests/gauntlet/mistakes.py`); those of heads that match are refloss itself, given what a mistaken head uses.
`python -m tests.gauntlet.table` writes this page, and a test holds that it is true.

Not here is 1 − p for the probability that a focal loss misses: PyTorch has it too, and the bounds allow what it loses.

- *golden cases*: how many of the built-in cases of these functions reject it. Many cannot: a mistake in blocks of 1024
  classes shows in rows of more classes only.
- *dtypes*: each function has cases of four dtypes; in how many of these a case rejects it. A kernel may come in one.
  Some mistakes show in fewer: what is large comes in one or two.
- *properties*: what `check_properties` says is broken, of the first function.
- *the judge says first*: its first diagnosis, without numbers, in most of the functions; *right*: in how many it is the
  mistake's own name.
"""

if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        PAGE.write_text(page(list(pool.map(numbered_row, range(len(MISTAKES))))), encoding="utf-8")
