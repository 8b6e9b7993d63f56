"""Which mistakes a function makes: the fewest that explain its failing cases."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from refloss.testing.verdict import Diagnosis

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from refloss.testing.verdict import CaseVerdict

_NUMBER = re.compile(r"( of)? -?\d+(\.\d+)?(e[+-]?\d+)?(?![\w.])| \([^()]*\)")


def diagnose(cases: Iterable[CaseVerdict]) -> tuple[Diagnosis, ...]:
    """The mistakes of every function that fails, those that explain most cases first."""
    failing: dict[str, list[CaseVerdict]] = {}
    for case in cases:
        if case.passed is False:
            failing.setdefault(case.function, []).append(case)
    found = [diagnosis for function, those in failing.items() for diagnosis in _mistakes(function, those)]
    return tuple(sorted(found, key=lambda each: (each.mistake is None, -len(each.cases))))


def _mistakes(function: str, failing: Sequence[CaseVerdict]) -> list[Diagnosis]:
    named = {case.id: _names(case) for case in failing}
    found = []
    while counts := Counter(name for names in named.values() for name in names):
        mistake, _ = counts.most_common(1)[0]
        explained = {case: names[mistake] for case, names in named.items() if mistake in names}
        detail = next(iter(explained.values()))
        told = "" if detail == mistake else f"{next(iter(explained))}: {detail}"
        found.append(Diagnosis(function, mistake, tuple(explained), len(failing), told))
        named = {case: names for case, names in named.items() if case not in explained}
    return [*found, Diagnosis(function, None, tuple(named), len(failing))] if named else found


def _names(case: CaseVerdict) -> dict[str, str]:
    """What explains the tensors of a case, by the words without the numbers of that case."""
    told = [tensor.explanation for tensor in case.tensors if tensor.passed is False and tensor.explanation]
    return {_NUMBER.sub("", explanation): explanation for explanation in told}
