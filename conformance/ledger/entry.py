"""What an entry of the ledger is, what it answers, and what is complained of."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conformance import ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import ModuleType

TOLERANCE = 1e-12  # relative


class Answer(NamedTuple):
    """One number, array or error, as the library has it, as it should be, and as refloss has it."""

    what: str
    theirs: Any  # what the installed library answers
    recorded: Any  # what it has answered so far
    exact: Any  # the right answer, from a formula that is none of the library's nor of refloss's
    ours: Any  # what refloss answers
    tolerance: float = TOLERANCE  # of theirs
    our_tolerance: float = TOLERANCE


@dataclasses.dataclass(frozen=True)
class Entry:
    """A divergence in words."""

    topic: str  # the page's section: the name of a file in records/
    case: str
    theirs: str
    ours: str
    seen: Mapping[str, str]  # the library's distribution, and the versions that were seen to do so
    reports: tuple[str, ...] = ()  # owner/repository#number
    followed: bool = False  # whether refloss answers as the library does


class Divergence(NamedTuple):
    """An entry and where it is written."""

    name: str  # library/slug
    entry: Entry
    module: ModuleType

    def answers(self, library: str) -> Iterable[Answer]:
        """What an installed library and refloss answer; reproduce() of several libraries is told which."""
        answers: Iterable[Answer] = self.module.reproduce(*([library] if len(self.entry.seen) > 1 else []))
        return answers


def divergences() -> Iterator[Divergence]:
    """All entries, in the order of libraries and names."""
    prefix = f"{ledger.__name__}."
    for found in pkgutil.walk_packages(ledger.__path__, prefix):
        name = found.name.removeprefix(prefix)
        if not found.ispkg and "." in name:
            module = importlib.import_module(found.name)
            yield Divergence(name.replace(".", "/"), module.ENTRY, module)


def complaints(entry: Entry, library: str, answers: Iterable[Answer]) -> list[str]:
    """What is no longer as the entry has it: a release that mended it, one that does a third thing, or refloss."""
    release = f"{library} {version(library)}"
    lines = []
    for answer in answers:
        if alike(answer.theirs, answer.exact, answer.tolerance):
            lines.append(f"{answer.what}: mended in {release}: say so in the ledger")
        elif not alike(answer.theirs, answer.recorded, answer.tolerance):
            lines.append(f"{answer.what}: {release} has {answer.theirs}, where the ledger has {answer.recorded}")
        wanted = answer.theirs if entry.followed else answer.exact
        if not alike(answer.ours, wanted, answer.our_tolerance):
            lines.append(f"{answer.what}: refloss has {answer.ours} instead of {wanted}")
    return lines


def alike(found: Any, wanted: Any, tolerance: float) -> bool:
    """Whether two answers are one: numbers to a tolerance, NaN and infinities where they are, errors by their names."""
    if isinstance(found, str) or isinstance(wanted, str):
        return bool(np.array_equal(found, wanted))
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=tolerance, atol=0.0, equal_nan=True)


def version(library: str) -> str | None:
    """The installed version of a distribution, without what says how it was built."""
    try:
        return importlib.metadata.version(library).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def raised(function: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """What a function returns, or the name of what it raises."""
    try:
        return function(*given, **options)
    except Exception as error:
        return type(error).__name__


def story(module: ModuleType) -> str:
    """What a module says of itself."""
    return inspect.cleandoc(module.__doc__ or "")
