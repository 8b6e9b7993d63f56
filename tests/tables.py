"""What is written from the specifications: the stub of the package, and tables of functions.

python -m tests.tables writes them; test_tables.py holds that they are what it would write.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import refloss
from refloss.homes import homes
from refloss.losses.parts.policy_presets import POLICY_PRESETS
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refloss.registry import Function

ROOT = Path(__file__).parents[1]
STUB = ROOT / "refloss" / "__init__.pyi"
_OTHERS = {
    "refloss.heads.parts.row_shards": ("shards",),
    "refloss.losses.parts.policy_presets": ("POLICY_PRESETS",),
    "refloss.mapping": ("LOSS_MAPPING",),
    "refloss.parallel": ("get_num_threads", "set_num_threads"),
    "refloss.result": ("LossResult",),
}
_MARKERS = "<!-- functions: python -m tests.tables -->\n", "<!-- end of functions -->\n"


def own_functions() -> dict[str, Function]:
    """refloss's own, without what a test has registered."""
    return {name: function for name, function in FUNCTIONS.items() if name in homes()}


def stub() -> str:
    """What type checkers and editors know of the package, whose names are imported when they are asked for."""
    modules = {home: (name,) for name, home in homes().items()} | _OTHERS
    imports = [f"from {home} import {name} as {name}" for home, names in sorted(modules.items()) for name in names]
    exported = sorted(name for names in modules.values() for name in names)
    return "\n".join(
        [
            "# Written by python -m tests.tables.",
            *(f"from refloss import {name} as {name}" for name in refloss._MODULES),
            *imports,
            "",
            "__version__: str",
            "__all__ = [",
            *(f'    "{name}",' for name in exported),
            "]",
            "",
        ]
    )


def overview() -> str:
    """Every function, its keys of LOSS_MAPPING and its counterpart."""
    rows = [
        (f"`{name}`", ", ".join(function.specification.keys), _counterpart(function.specification.follows))
        for name, function in own_functions().items()
    ]
    return _table(("function", "`LOSS_MAPPING` keys", "follows"), rows)


def facts() -> str:
    """Every function, what it takes and what it divides by."""
    rows: list[tuple[str, ...]] = []
    for name, function in own_functions().items():
        specification = function.specification
        arguments = [
            f"`{argument}`{' (optional)' if each.optional else ''}: {each.role}"
            for argument, each in specification.arguments.items()
        ]
        told = ("gradients", specification.differentiable), ("parameters", specification.parameters)
        names = [", ".join(f"`{each}`" for each in several) for _, several in told]
        rows.append((f"`{name}`", "; ".join(arguments), *names, specification.mean))
    return _table(("function", "arrays", "gradients of", "parameters", "a mean divides by"), rows)


def presets() -> str:
    """Trainers' policy losses: keywords, and what each trainer does besides."""
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{keyword}={value!r}`" for keyword, value in keywords.items()),
            POLICY_PRESETS.besides(name),
        )
        for name, keywords in POLICY_PRESETS.items()
    ]
    return _table(("preset", "keywords", "besides"), rows)


def _counterpart(follows: str) -> str:
    """With the names of code marked."""
    return re.sub(r"(?<=transformers' )\w+|\w+(?:\.\w+)+", r"`\g<0>`", follows)


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _with_table(text: str, table: str) -> str:
    first, last = (text.index(marker) for marker in _MARKERS)
    return text[: first + len(_MARKERS[0])] + table + text[last:]


def files() -> dict[Path, str]:
    """What each file should hold."""
    written = {STUB: stub()}
    tables = {"README.md": overview(), "docs/functions.md": facts(), "docs/policy_presets.md": presets()}
    for name, table in tables.items():
        written[ROOT / name] = _with_table((ROOT / name).read_text(encoding="utf-8"), table)
    return written


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
