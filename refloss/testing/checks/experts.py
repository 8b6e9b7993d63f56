"""What must hold of a balance: tokens have no order, nor have experts, and tokens that do not count are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.checks.trials import Trial, ViolationError, compare, element, gradients
from refloss.testing.judging.driver import GRAD

if TYPE_CHECKING:
    from collections.abc import Callable

_ADDED = 3  # tokens


def permuted_tokens(trial: Trial) -> bool:
    """The loss stays, gradients go with their tokens."""
    return _changed(trial, lambda logits: logits[..., ::-1, :], "tokens change places")


def permuted_experts(trial: Trial) -> bool:
    """The loss stays, gradients go with their experts, where no tie says which of two experts is chosen."""
    if not trial.is_balance or _are_tied(trial):
        return False
    return _changed(trial, lambda logits: logits[..., ::-1], "experts change places")


def masked_tokens(trial: Trial) -> bool:
    """Tokens that do not count change nothing, whatever they choose, and get a gradient of 0."""
    if not trial.is_balance or "mask" not in trial.specification.arguments:
        return False
    (name,) = trial.softmax
    logits = trial.case.inputs[name]
    tokens = logits.shape[-2]

    def with_more(values: np.ndarray, more: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.take(more, range(_ADDED), axis=-2, mode="wrap")], axis=-2)

    inputs = {name: with_more(logits, logits[..., ::-1]), "mask": np.arange(tokens + _ADDED) < tokens}
    after = trial.measure(trial.with_inputs(inputs))
    if f"{GRAD}{name}" in after and np.any(of_added := after[f"{GRAD}{name}"].value[..., tokens:, :]):
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.abs(of_added))), of_added.shape))
        where = (*index[:-2], tokens + index[-2], index[-1])
        raise ViolationError(f"{element(f'{GRAD}{name}', where)} is {of_added[index]:.9g} of a token that is masked")
    before = {
        key: each.changed(lambda g: with_more(g, np.zeros_like(g))) for key, each in gradients(trial.answer).items()
    }
    compare(before | {"loss": trial.answer["loss"]}, after, "before and after tokens that are masked are added")
    return True


def _changed(trial: Trial, change: Callable[[np.ndarray], np.ndarray], what: str) -> bool:
    if not trial.is_balance:
        return False
    case = trial.with_inputs({name: change(trial.case.inputs[name]) for name in trial.softmax})
    before = {key: each.changed(change) for key, each in gradients(trial.answer).items()}
    compare(before | {"loss": trial.answer["loss"]}, trial.measure(case), f"before and after {what}")
    return True


def _are_tied(trial: Trial) -> bool:
    """Whether the last expert of some token that is chosen is as good as the first that is not."""
    (name,) = trial.softmax
    ordered = np.sort(trial.case.inputs[name].astype(np.float64), axis=-1)[..., ::-1]
    chosen = int(trial.option("top_k"))
    return bool(np.any(ordered[..., chosen - 1 : chosen] == ordered[..., chosen : chosen + 1]))
