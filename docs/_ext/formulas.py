"""Formulas of docstrings as TeX: a line each there, in Unicode, with _ and ^ for what is below and above."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES = (
    "·cdot ≠ne ≤le ≥ge ∈in ±pm →to Σsum ∂partial …dots ⌊lfloor ⌋rfloor ℓell αalpha βbeta γgamma δdelta εvarepsilon "
    "ζzeta ηeta θtheta κkappa λlambda μmu νnu πpi ρrho σsigma τtau φvarphi χchi ψpsi ωomega"
)
_SIGNS = {name[0]: rf"\{name[1:]} " for name in _NAMES.split()}
_SIGNS |= {"−": "-", "′": "'", "½": r"\tfrac12 ", "²": "^2", "³": "^3", "₀": "_0", "₁": "_1", "₂": "_2"}
_SIGNS |= {sign: rf"\{sign}" for sign in "{}%#&$"}
_FUNCTIONS = frozenset(
    ("log", "exp", "max", "min", "tanh", "cos", "lse", "softplus", "softmax", "clip", "clamp", "chain")
)
_TOKEN = re.compile(
    r"""(?P<word>"[^"]*"|\ba(?=\ (?!and\b)[a-z]{2})|[A-Za-z]{2,}(?:_[A-Za-z]{2,})+|[A-Za-z]{2,}(?:['-]?[a-z]+)*)
    |(?P<power>\d+(?:\.\d+)?e-?\d+)|(?P<script>[_^])|(?P<space>\s+)|(?P<sign>.)""",
    re.VERBOSE,
)
_ATOM = re.compile(r"−?(?:[A-Za-z0-9]+|ℓ?[^\W\d_]|\S)")


def as_tex(lines: list[str]) -> str:
    """Lines of a formula as arrays: what two spaces or more separate is a column, or an equation of its own."""
    rows = [row for line in lines for row in _rows(line)]
    tables = [_array(list(group)) for _, group in groupby(rows, key=lambda row: len(row) > 1)]
    return tables[0] if len(tables) == 1 else _stacked([[table] for table in tables])


def _rows(line: str) -> Iterator[list[str]]:
    cells = re.split(r"\s{2,}", line.rstrip())
    if cells[0] and not cells[0].endswith(":") and all(re.search("[=≤≥]", cell) for cell in cells):
        yield from ([cell] for cell in cells)
    else:
        yield cells


def _array(rows: list[list[str]]) -> str:
    """Rows of cells; one that begins with none is continued from the right."""
    columns = max(map(len, rows))
    whole = ([""] * (columns - len(row)) + row if not row[0] else row for row in rows)
    return _stacked([[rf"\displaystyle {_tex(cell)}" for cell in row] for row in whole])


def _stacked(rows: list[list[str]]) -> str:
    columns, body = max(map(len, rows)), r" \\[4pt] ".join(" & ".join(row) for row in rows)
    return rf"\begin{{array}}{{{'l' * columns}}} {body} \end{{array}}"


def _tex(text: str) -> str:
    written, at = "", 0
    while at < len(text):
        piece, at = _piece(text, at)
        written += piece
    return written


def _piece(text: str, at: int) -> tuple[str, int]:
    """A token with what belongs to it, and where the next one begins."""
    found = _TOKEN.match(text, at)
    assert found is not None
    token, start, at = found[0], found.start(), found.end()
    match found.lastgroup:
        case "script":
            inner, at = _script(text, at)
            return f"{token}{{{inner}}}", at
        case "word" if token in _FUNCTIONS:
            # Without an argument it is a number, of which a sign can follow.
            is_number = re.match(r" ?[−+·|)=/,_]|$", text[at:])
            return rf"\{'mathrm' if is_number else 'operatorname'}{{{token}}}", at
        case "word":
            font = "texttt" if token[0] == '"' else "text"
            return rf"\{font}{{{token}}}", at
        case "power":
            number, _, exponent = token.partition("e")
            factor = "" if number == "1" else rf"{number} \cdot "
            return f"{factor}10^{{{exponent}}}", at
        case "space":
            return (r"\ " if _is_prose(text[:start], text[at:]) else " "), at
    return _SIGNS.get(token, token), at


def _is_prose(before: str, after: str) -> bool:
    """Whether a space is one that is seen: beside a word that is no function."""
    beside = re.search(r"(?<![A-Za-z_^])[A-Za-z-]{2,}[,;]?$", before), re.match(r"[A-Za-z]{2,}|a [a-z]{2}", after)
    words = {found[0].rstrip(",;") for found in beside if found is not None}
    return bool(words - _FUNCTIONS) or before.endswith(" a")


def _script(text: str, at: int) -> tuple[str, int]:
    """What stands below or above: a group, a name, a number, or one of them with a sign or a script of its own."""
    if text[at : at + 1] in ("(", "{"):
        end = _closing(text, at)
        return _tex(text[at + 1 : end]), end + 1
    found = _ATOM.match(text, at)
    if found is None:
        return "", at
    token, at = found[0], found.end()
    is_word = len(token) > 2 and token.isalpha()
    written = rf"\text{{{token}}}" if is_word else "".join(_SIGNS.get(sign, sign) for sign in token)
    if text[at : at + 1] == "_":
        inner, at = _script(text, at + 1)
        written += f"_{{{inner}}}"
    return written, at


def _closing(text: str, at: int) -> int:
    """Where a bracket is closed."""
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] in "({") - (text[place] in ")}")
        if not depth:
            return place
    return len(text)
