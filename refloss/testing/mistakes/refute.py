"""Which mistakes would show in a case that passes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.mistakes.explain import guesses, rows_of, slack_of
from refloss.testing.mistakes.factors import named_factors
from refloss.testing.mistakes.tensors import near

if TYPE_CHECKING:
    from collections.abc import Mapping

    from refloss.testing.mistakes.guess import Guess
    from refloss.testing.verdict import Question


@np.errstate(all="ignore")
def refuted(asked: Question, wanted: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Which of some mistakes would show in tensors of a case, whichever way they are made."""
    shows: dict[str, list[bool]] = {}
    for guess in guesses(asked, rows_of(asked), set(wanted)):
        if not guess.is_certain:
            continue
        names = [name for name in guess.tensors if name in wanted[guess.mistake] and name in asked.expected]
        if names:
            shows.setdefault(guess.mistake, []).append(any(_shows(asked, guess, name) for name in names))
    tensors = {name for names in wanted.values() for name in names if name in asked.expected}
    for name in tensors:
        for factor in named_factors(asked.case, name):
            if factor.mistake in wanted and name in wanted[factor.mistake]:
                shows.setdefault(factor.mistake, []).append(_is_seen(asked, name, factor.value))
    return tuple(mistake for mistake, variants in shows.items() if all(variants))


def _shows(asked: Question, guess: Guess, name: str) -> bool:
    right, values = asked.expected[name].astype(np.float64), guess.tensors[name]
    if right.shape != values.shape:
        return False
    bound = 2 * np.asarray(asked.bounds[name]) + slack_of(asked) * np.abs(right)
    return not near(right, values, 2 * bound, undefined_alike=True).all()


def _is_seen(asked: Question, name: str, factor: float) -> bool:
    right = asked.expected[name].astype(np.float64)
    bound = 2 * np.asarray(asked.bounds[name]) + slack_of(asked) * np.abs(right)
    return bool((np.abs(right * (factor - 1)) > 2 * bound).any())
