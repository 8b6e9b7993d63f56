"""The built-in cases of every loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refloss import subnormals
from refloss.golden.drawn import of_every_format
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from refloss.cases.source import Case


def corpus(only: set[str] | None = None) -> list[Case]:
    """The cases of every function, or of some."""
    return [case for name in FUNCTIONS if only is None or name in only for case in cases_of(name)]


@subnormals.keeping
def cases_of(name: str) -> list[Case]:
    """The cases of a function: those that its specification has, or some that are drawn."""
    function = FUNCTIONS[name]
    build = function.specification.cases
    return build(name) if build else of_every_format(function)
