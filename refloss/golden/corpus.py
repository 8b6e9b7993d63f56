"""The built-in cases of every loss."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from refloss import subnormals
from refloss.golden.drawn import of_every_format
from refloss.messages import asked, did_you_mean
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def dtype_of(case: Case) -> str:
    """The dtype of a case's first input."""
    return str(case.inputs[FUNCTIONS[case.function].required[0]].dtype)


def matching(globs: Sequence[str], ids: Sequence[str]) -> set[str]:
    """The ids that match patterns, all if there are none; each pattern has to match one."""
    found: set[str] = set() if globs else set(ids)
    for glob in globs:
        those = [each for each in ids if fnmatch.fnmatchcase(each, glob)]
        if not those:
            raise ValueError(_no_case(glob, ids))
        found.update(those)
    return found


def _no_case(glob: str, ids: Sequence[str]) -> str:
    """What is wrong with a pattern: that of a function lacks its star."""
    starred = f"{glob}-*"
    near = f"did you mean {starred!r}?" if any(each.startswith(f"{glob}-") for each in ids) else did_you_mean(glob, ids)
    told = " ".join(filter(None, (f"no case is called {glob}", asked(near))))
    return f"{told}; there are {', '.join(ids[:2])}{' and others' if len(ids) > 2 else ''}"
