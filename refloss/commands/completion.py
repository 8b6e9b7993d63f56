"""What a shell completes: names of functions, cases and dtypes, also the last one of several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from refloss.messages import EXPECTED_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Completing = Callable[[Any, str], list[str]]

# Options that say of which functions cases are.
_OF_FUNCTIONS = ("only", "functions", "function")


def one_of(words: Iterable[str]) -> Completing:
    """Completes a word."""
    known = tuple(words)

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:  # noqa: ARG001
        return [word for word in known if word.startswith(incomplete)]

    return complete


def several_of(known: Callable[[typer.Context, str], Iterable[str]]) -> Completing:
    """Completes the last of names that commas separate; known is asked for those that may begin with what is there."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        there = before.split(",")
        return [f"{before}{comma}{name}" for name in known(ctx, last) if name.startswith(last) and name not in there]

    return complete


def functions(*_: Any) -> Iterable[str]:
    """The names of all functions."""
    from refloss.registry import FUNCTIONS

    return list(FUNCTIONS)


def dtypes(*_: Any) -> Iterable[str]:
    """Of a first input."""
    from refloss.cases.source import DTYPES

    return list(DTYPES)


def compute_dtypes(*_: Any) -> Iterable[str]:
    """What candidates compute in."""
    from refloss.roundoff import COMPUTE_DTYPES

    return list(COMPUTE_DTYPES)


def cases(ctx: typer.Context, last: str) -> Iterable[str]:
    """The ids of a golden folder's cases where one is compared with, else of built-in ones of the functions meant."""
    from refloss.golden.corpus import cases_of
    from refloss.golden.manifest import read_manifest

    if ctx.info_name == "compare":
        # Click has not come to arguments where an option still lacks its value.
        folder = ctx.params.get("golden") or next(iter(ctx.args), "")
        try:
            return [entry["id"] for entry in read_manifest(Path(folder))["cases"]]
        except EXPECTED_ERRORS:
            return []
    named = next((ctx.params[name] for name in _OF_FUNCTIONS if ctx.params.get(name)), "")
    meant = [name for name in functions() if _may_begin(name, last) and (not named or name in named.split(","))]
    return [case.id for name in meant for case in cases_of(name)]


def _may_begin(function: str, start: str) -> bool:
    """Whether a case of a function may begin so."""
    return f"{function}-".startswith(start) or start.startswith(f"{function}-")
