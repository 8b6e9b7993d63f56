"""Which cases and which of their tensors are judged, by their names; one that nothing has is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.messages import unknown
from refloss.roundoff import COMPUTE_DTYPES
from refloss.testing.judging.driver import COMPONENT, GRAD
from refloss.testing.judging.judge import judge

if TYPE_CHECKING:
    from refloss.testing.verdict import CaseVerdict, Question


def listed(names: str | Iterable[str] | None) -> list[str]:
    """One name or several."""
    return [names] if isinstance(names, str) else list(names or [])


def type_name(compute_dtype: Any) -> str | None:
    """A type to compute in by its name, of a dtype too; None for None."""
    if compute_dtype is None:
        return None
    if isinstance(compute_dtype, str):
        return compute_dtype
    try:
        name: str = np.dtype(compute_dtype).name
    except Exception:
        raise TypeError(f"compute_dtype is {compute_dtype!r}; expected one of {', '.join(COMPUTE_DTYPES)}") from None
    return name


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise unless all names are known."""
    wrong = [name for name in given if name not in known]
    if wrong:
        raise ValueError(unknown(what, wrong, known))


class Only:
    """Which gradients and components are judged: those of some names, or all."""

    def __init__(self, grads: str | Iterable[str] | None, components: str | Iterable[str] | None) -> None:
        given = {COMPONENT: components, GRAD: grads}
        self._names = {kind: None if names is None else listed(names) for kind, names in given.items()}
        self._seen: set[str] = set()

    def of(self, asked: Question, tensors: Mapping[str, Any], *, has_components: bool = True) -> dict[str, Any]:
        """What is to be judged of a candidate by its name; None for what should have come."""
        self._seen |= asked.expected.keys()
        known = (name for name in asked.expected if not name.startswith("intermediate."))
        names = dict.fromkeys((*known, *tensors))
        return {name: tensors.get(name) for name in names if self._is_wanted(name, has_components=has_components)}

    def _is_wanted(self, name: str, *, has_components: bool) -> bool:
        kind = next((kind for kind in self._names if name.startswith(kind)), None)
        if kind is None:
            return True
        only = self._names[kind]
        if only is None:
            return has_components or kind != COMPONENT
        return name.removeprefix(kind) in only

    def include(self, other: Only) -> None:
        """Take over what another one of the same names has seen."""
        self._seen |= other._seen

    def check(self) -> None:
        """Raise unless everything that is asked for by name has been seen."""
        for kind, only in self._names.items():
            known = sorted(name.removeprefix(kind) for name in self._seen if name.startswith(kind))
            if self._seen and only:
                check_names(kind.rstrip("."), only, known)


def judged(asked: Question, candidate: Mapping[str, np.ndarray | None]) -> CaseVerdict:
    """A verdict on what is given, and only that; None is what an array that is not there looks like."""
    verdict = judge(asked, candidate)
    tensors = tuple(tensor for tensor in verdict.tensors if tensor.name in candidate)
    outcomes = [tensor.passed for tensor in tensors]
    passed = None if set(outcomes) == {None} else False not in outcomes
    return replace(verdict, tensors=tensors, passed=passed)
