"""Mistaken divergences of two softmaxes, most of which are right answers to other cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes.alterations import Altered, altered
from refloss.testing.mistakes.guess import USUAL, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case
    from refloss.testing.verdict import Question

NO_ENTROPY = "the teacher's entropy is left out"
ZEROS_UNDEFINED = "0·log 0 is NaN"
_SIDES = ("student_logits", "teacher_logits")


def of_divergences(asked: Question) -> Iterator[Guess]:
    """Those of a case's function; none where it is another."""
    case = asked.case
    if case.function != "distillation":
        return
    case = case._replace(inputs=case.inputs | {name: real(case.inputs[name]) for name in _SIDES})
    kind, temperature = case.parameters.get("divergence", "forward_kl"), case.parameters.get("temperature", 1.0)
    right = Altered(case).answer()[1]
    for other in {"forward_kl", "reverse_kl", "jsd"} - {kind}:
        yield Guess(f"{other} instead of {kind}", USUAL, _other(case, divergence=other))
    if kind == "jsd" and case.parameters.get("beta", 0.5) != 0.5:
        yield Guess("β is swapped", USUAL, _other(case, beta=1.0 - case.parameters["beta"]))
    if temperature != 1.0:
        yield from _of_temperature(case, temperature)
    if kind == "forward_kl":
        yield Guess(NO_ENTROPY, USUAL, _without_entropy(case, right))
    yield from _undefined(case, right)


def _other(case: Case, **parameters: Any) -> dict[str, np.ndarray]:
    return Altered(altered(case, **parameters)).answer()[1]


def _of_temperature(case: Case, temperature: float) -> Iterator[Guess]:
    """Forgotten on one side, or squared where it is not to be."""
    squared = bool(case.parameters.get("temperature_squared"))
    words = "τ² is forgotten" if squared else "losses are multiplied by τ²"
    yield Guess(words, USUAL, _other(case, temperature_squared=not squared))
    for name in _SIDES:
        wrong = Altered(altered(case, {name: case.inputs[name] * temperature})).answer()[1]
        wrong[f"grad.{name}"] = wrong[f"grad.{name}"] * temperature
        yield Guess(f"the temperature is forgotten for {name}", USUAL, wrong)


def _counts(case: Case) -> np.ndarray:
    """Which rows do."""
    return np.asarray(case.inputs.get("mask", np.ones(case.inputs[_SIDES[0]].shape[:-1])), bool)


@np.errstate(all="ignore")
def _without_entropy(case: Case, right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """−Σ t·log s."""
    z = case.inputs[_SIDES[1]] / case.parameters.get("temperature", 1.0)
    terms = np.exp(z - z.max(axis=-1, keepdims=True, initial=-np.inf))
    p = terms / terms.sum(axis=-1, keepdims=True)
    entropy = np.where(_counts(case), -(p * np.log(np.maximum(p, 2.0**-1074))).sum(axis=-1), 0.0)
    entropy = entropy * (
        case.parameters.get("temperature", 1.0) ** 2 if case.parameters.get("temperature_squared") else 1
    )
    reduction = case.parameters.get("reduction", "mean")
    if reduction == "none":
        return {"loss": right["loss"] + entropy}
    return {"loss": right["loss"] + entropy.sum() / (_counts(case).sum() if reduction == "mean" else 1)}


def _undefined(case: Case, right: dict[str, np.ndarray]) -> Iterator[Guess]:
    """A class without probability makes NaN of its row."""
    masked = np.zeros(_counts(case).shape, bool)
    for name in _SIDES:
        masked |= np.isneginf(case.inputs[name]).any(axis=-1) & _counts(case)
    if not masked.any():
        return
    rows = masked[..., None]
    grads = {name: np.where(rows, np.nan, value) for name, value in right.items() if name.startswith("grad.")}
    lost = masked if case.parameters.get("reduction", "mean") == "none" else masked.any()
    for wrong in ({"loss": np.where(lost, np.nan, right["loss"])}, {}):
        yield Guess(ZEROS_UNDEFINED, USUAL, wrong | grads)
        for name, gradient in grads.items():
            yield Guess(ZEROS_UNDEFINED, USUAL, wrong | {name: gradient})
    yield Guess(ZEROS_UNDEFINED, USUAL, {"loss": np.where(lost, np.nan, right["loss"])})
