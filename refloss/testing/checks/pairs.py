"""What must hold of losses of similarities, whose pairs are on the diagonal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.checks.trials import Trial, compare, gradients

if TYPE_CHECKING:
    from refloss.cases.source import Case


def _similarities(trial: Trial) -> tuple[str, np.ndarray] | None:
    found = [name for name, each in trial.arguments.items() if each.role == "similarities"]
    return (found[0], trial.case.inputs[found[0]]) if found else None


def permuted_pairs(trial: Trial) -> bool:
    """Where pairs change places, rows and columns alike, the loss stays and gradients go with them."""
    found = _similarities(trial)
    if found is None:
        return False
    name, values = found
    count = len(values)
    columns = np.concatenate([np.arange(count)[::-1], np.arange(count, values.shape[1])])

    def change(matrix: np.ndarray) -> np.ndarray:
        return matrix[::-1][:, columns]

    case = trial.with_inputs({name: change(values)})
    before = {key: each.changed(change) for key, each in gradients(trial.answer).items()}
    loss = trial.answer["loss"]
    if not trial.is_reduced:
        case = case._replace(grad_output=_reversed(case))
        loss = loss.changed(lambda losses: losses[::-1])
    compare(before | {"loss": loss}, trial.measure(case), "before and after pairs change places")
    return True


def _reversed(case: Case) -> float | np.ndarray:
    upstream = np.asarray(case.grad_output)
    return upstream[::-1] if upstream.ndim else float(upstream)


def transposed(trial: Trial) -> bool:
    """Where rows and columns change places, of a loss that is that of both, the loss stays."""
    found = _similarities(trial)
    if found is None or not trial.is_reduced or trial.case.parameters.get("symmetric") is False:
        return False
    name, values = found
    before = {key: each.changed(np.transpose) for key, each in gradients(trial.answer).items()}
    after = trial.measure(trial.with_inputs({name: values.T.copy()}))
    compare(before | {"loss": trial.answer["loss"]}, after, "before and after rows and columns change places")
    return True
