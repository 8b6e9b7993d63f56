"""From the mistakes that fit each failing case to the few that explain a function's failing cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FACTOR = "off by a constant factor"
POWERS_OF_TWO = 24  # a world size, or a loss scale that was not taken out
_REFUTED = 0.5  # what cases that pass, and in which a mistake would show, take from those that it explains


class Cause(NamedTuple):
    """A usual mistake that explains failing tensors of a case.

    prior is how likely it is beside others, from 0 to 1, detail says it with the numbers of the case, and tensors are
    those that it explains. What is off by a constant factor without another reason has the factors that fit.
    """

    mistake: str
    prior: float
    detail: str = ""
    tensors: tuple[str, ...] = ()
    factors: tuple[float, float] | None = None

    def means(self, mistake: str | None) -> bool:
        """Whether it is a mistake by that name, the number of a constant factor aside."""
        return self.mistake == mistake or (self.factors is not None and str(mistake).startswith(FACTOR))


class Diagnosis(NamedTuple):
    """A mistake, in a function, and the cases that it explains, of so many that fail; None stands for no usual one."""

    function: str
    mistake: str | None
    cases: tuple[str, ...]
    failing: int
    detail: str = ""


class Symptoms(NamedTuple):
    """Of a case: the tensors that fail, or that its mistakes are told from, and what fits them.

    refuted are mistakes that would show in it and do not: it passes.
    """

    id: str
    failing: tuple[str, ...]
    causes: tuple[Cause, ...]
    refuted: tuple[str, ...] = ()


def diagnose(function: str, cases: Iterable[Symptoms]) -> tuple[Diagnosis, ...]:
    """The fewest mistakes that explain the failing cases of a function, that of most cases first; at last the rest."""
    every = _with_common_factors(list(cases))
    failing = [case for case in every if case.failing]
    refuted = {mistake for case in every for mistake in case.refuted}
    open_: dict[str, set[str]] = {case.id: set(case.failing) for case in failing}
    found: list[Diagnosis] = []
    while any(open_.values()):
        causes = _candidates(failing, open_)
        if not causes:
            break

        def score(mistake: str, causes: Mapping[str, Mapping[str, Cause]] = causes) -> tuple[float, float]:
            whole = sum(set(cause.tensors) >= open_[case] for case, cause in causes[mistake].items())
            explained = (len(causes[mistake]) + whole) / 2
            return explained - _REFUTED * (mistake in refuted), max(each.prior for each in causes[mistake].values())

        best = max(causes, key=score)
        for case, cause in causes[best].items():
            open_[case] -= set(cause.tensors)
        first = next(iter(causes[best].values()))
        found.append(Diagnosis(function, best, tuple(causes[best]), len(failing), first.detail or best))
    rest = tuple(case for case, tensors in open_.items() if tensors)
    return (*found, Diagnosis(function, None, rest, len(failing))) if rest else tuple(found)


def _candidates(failing: list[Symptoms], open_: Mapping[str, set[str]]) -> dict[str, dict[str, Cause]]:
    """By mistake and case, what explains something that nothing has explained yet."""
    causes: dict[str, dict[str, Cause]] = {}
    for case in failing:
        for cause in case.causes:
            if set(cause.tensors) & open_[case.id]:
                causes.setdefault(cause.mistake, {}).setdefault(case.id, cause)
    return causes


def _with_common_factors(cases: list[Symptoms]) -> list[Symptoms]:
    """Constant factors without a reason get the number that most of them can be."""
    intervals = [cause.factors for case in cases for cause in case.causes if cause.factors is not None]
    left, named = list(intervals), dict[tuple[float, float], str]()
    while left:
        point = max((low for low, _ in left), key=lambda at: sum(low <= at <= high for low, high in left))
        together = [each for each in left if each[0] <= point <= each[1]]
        words = factor_words(max(low for low, _ in together), min(high for _, high in together))
        named |= dict.fromkeys(together, words)
        left = [each for each in left if each not in together]
    return [case._replace(causes=tuple(_named(cause, named) for cause in case.causes)) for case in cases]


def _named(cause: Cause, named: Mapping[tuple[float, float], str]) -> Cause:
    if cause.factors is None:
        return cause
    return cause._replace(mistake=named[cause.factors], detail=named[cause.factors])


def factor_words(low: float, high: float) -> str:
    """How a factor between two numbers is told, by the plainest number that it can be."""
    for power in range(-POWERS_OF_TWO, POWERS_OF_TWO + 1):
        for value in (2.0**power, -(2.0**power)):
            if power and low <= value <= high and abs(high - low) < 0.05 * abs(value):
                return f"{FACTOR} of {value:.6g}{_of_power(power)}{', with the wrong sign' if value < 0 else ''}"
    middle = (low + high) / 2
    digits = next((n for n in range(1, 7) if low <= float(f"{middle:.{n}g}") <= high), 7)
    return f"{FACTOR} of {middle:.{min(digits, 4)}g}"


def _of_power(power: int) -> str:
    if abs(power) < 2:
        return ""
    words = "a world size or a loss scale" if power > 0 else "1 / a world size"
    return f", a power of two such as {words}"
