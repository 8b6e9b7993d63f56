"""What must hold of losses of corresponding numbers, and of boxes: symmetries, scales, limits."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from refloss.testing.checks.classes import linear_in
from refloss.testing.checks.trials import (
    Answer,
    Trial,
    added,
    by_name,
    compare,
    finite,
    gradients,
    scaled,
)
from refloss.testing.judging.driver import GRAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case

_GRID = 2.0**-6  # what coordinates of boxes that are moved are multiples of
_SHORT = 7  # halvings of a number in float16, of which subnormal ones hold two times as many
_LONG = 32


def permuted_elements(trial: Trial) -> bool:
    """Where elements of a row change places, the loss stays and gradients go with them."""
    first = next(iter(trial.case.inputs.values()))
    if not trial.are_elements or first.ndim < 2:
        return False
    shapes = {trial.case.inputs[name].shape for name in trial.arguments}
    if len(shapes) > 1:
        return False
    change = functools.partial(np.flip, axis=-1)
    case = trial.with_inputs({name: change(value) for name, value in trial.case.inputs.items()})
    before = dict(trial.answer)
    if not trial.is_reduced and trial.specification.per == "element":
        case = case._replace(grad_output=change(np.asarray(case.grad_output)))
        before["loss"] = before["loss"].changed(change)
    before |= {name: each.changed(change) for name, each in gradients(before).items()}
    compare(before, trial.measure(case), "before and after elements of rows change places")
    return True


def symmetric(trial: Trial) -> bool:
    """A distance is the same the other way round, and so is an overlap; a mirrored logit with the other target."""
    if "mirrored" in trial.specification.identities:
        return _mirrored(trial)
    first, second = _pair(trial)
    if first == second:
        return False
    swapped = {first: trial.case.inputs[second], second: trial.case.inputs[first]}
    after = trial.measure(trial.with_inputs(swapped))
    before = dict(trial.answer)
    names = {f"{GRAD}{first}": f"{GRAD}{second}", f"{GRAD}{second}": f"{GRAD}{first}"}
    renamed = {names.get(name, name): each for name, each in after.items()}
    what = f"before and after {first} and {second} change places"
    compare(before, renamed, what)
    if "a distance" in trial.specification.identities:
        odd = dict.fromkeys(names, -1.0)
        compare(by_name(before, dict.fromkeys(odd, 1.0)), by_name(after, odd), f"and its negative, {what}")
    return True


def _pair(trial: Trial) -> tuple[str, str]:
    """Two arguments that may change places, or one twice."""
    boxes = trial.specification.named("boxes")
    names = list(trial.specification.required)
    is_pair = "a distance" in trial.specification.identities or (len(boxes) == 2 and boxes == names)
    return (names[0], names[1]) if is_pair else (names[0], names[0])


def _mirrored(trial: Trial) -> bool:
    """Of −x, or 1 − p, with the other target or sign, and α for 1 − α."""
    first, target = trial.specification.required[:2]
    weights = trial.specification.named("weight")
    if any(name in trial.case.inputs for name in weights[1:]):
        return False  # a weight of positive targets
    options = {}
    if "alpha" in trial.specification.parameters and trial.option("alpha") >= 0.0:
        options["alpha"] = 1.0 - trial.option("alpha")
    of = trial.case.inputs
    one = of[first].dtype.type(1)
    x = one - of[first] if trial.arguments[first].role == "probabilities" else -of[first]
    other = -of[target] if trial.arguments[target].role == "signs" else of[target].dtype.type(1) - of[target]
    case = trial.with_inputs({first: x, target: other}, **options)
    signs = {name: -1.0 if name in (f"{GRAD}{first}", f"{GRAD}{target}") else 1.0 for name in trial.answer}
    compare(trial.answer, by_name(trial.measure(case), signs), "and its mirror image's")
    return True


def moved(trial: Trial) -> bool:
    """Both of a pair, or both boxes, moved by a constant."""
    first, second = _pair(trial)
    if first == second:
        return False
    before, constant = trial, 64.0
    if trial.arguments[first].role == "boxes":
        rounded = {name: _rounded(trial.case.inputs[name]) for name in (first, second)}
        before, constant = trial.of(trial.with_inputs(rounded)), 0.5
    inputs = {}
    for name in (first, second):
        values = before.case.inputs[name]
        steps = np.full(values.shape, constant)
        if trial.case.parameters.get("box_format") == "cxcywh":
            steps[..., 2:] = 0.0
        inputs[name] = (values.astype(np.float64) + steps).astype(values.dtype)
    after = trial.measure(before.with_inputs(inputs))
    compare(before.answer, after, f"before and after {first} and {second} are moved")
    return True


def _rounded(boxes: np.ndarray) -> np.ndarray:
    """To a grid, on which no box is without area."""
    return np.asarray(np.round(boxes.astype(np.float64) / _GRID) * _GRID, boxes.dtype)


def scaled_values(trial: Trial) -> bool:
    """All values times a power of two, and the parameters that are such values."""
    degree, specification = trial.specification.degree, trial.specification
    if degree is None:
        return False
    names = [name for name, each in trial.arguments.items() if each.role in ("values", "vectors", "boxes")]
    options = {name: trial.option(name) * trial.small for name in specification.scales}
    after = trial.measure(trial.with_inputs(trial.multiplied(names, trial.small), **options))
    slopes = {f"{GRAD}{name}" for name in names}
    factors = {name: trial.small ** -(degree - (name in slopes)) for name in after}
    compare(trial.answer, by_name(after, factors), "before and after all values are scaled")
    return True


def sure_and_wrong(trial: Trial) -> bool:
    """The loss of a logit that is sure and wrong grows as the logit does, and its gradient stays; if right, it ends."""
    specification = trial.specification
    logits = [name for name, each in trial.arguments.items() if each.activation == "sigmoid"]
    targets = specification.named("probabilities")
    if specification.per != "element" or len(logits) != 1 or len(targets) != 1:
        return False
    (name,), (target,) = logits, targets
    hard = np.round(trial.case.inputs[target].astype(np.float64))

    def case(distance: float) -> Case:
        x, t = trial.case.inputs[name].dtype, trial.case.inputs[target].dtype
        return trial.with_inputs({name: np.asarray(distance * (1.0 - 2.0 * hard), x), target: np.asarray(hard, t)})

    for distance in (-trial.step / 4, -trial.step, -2.0 * trial.step):
        finite(trial.measure(case(distance)))
    near, far = trial.measure(case(trial.step)), trial.measure(case(2.0 * trial.step))
    factors = {"loss": 2.0, f"{GRAD}{name}": 1.0}
    what = f"of targets that logits of ±{trial.step:g} miss and of those that twice as large ones miss"
    compare(by_name(near, factors), by_name(far, dict.fromkeys(factors, 1.0)), what)
    return True


def linear_in_the_input(trial: Trial) -> bool:
    """The losses for the input and for 0 add up to twice that for half of it, and so do the gradients."""
    given = "linear in the input" in trial.specification.identities
    return linear_in(_with_zeros(trial), [trial.specification.required[0]] if given else [], "input")


def _with_zeros(trial: Trial) -> Trial:
    """The case with some targets of 0, where they are probabilities."""
    target = next(iter(trial.specification.named("probabilities")), "")
    if target not in trial.case.inputs or trial.case.parameters.get("log_target"):
        return trial
    values = trial.case.inputs[target].copy()
    values[:1] = 0.0
    return trial.of(trial.with_inputs({target: values}))


def logarithms(trial: Trial) -> bool:
    """Where a probability shrinks by equal factors, the loss grows by equal steps."""
    identities, inputs = trial.specification.identities, trial.case.inputs
    first, target = [*trial.specification.required, "", ""][:2]
    steps = _SHORT if inputs[first].dtype == np.float16 else _LONG
    if "logarithm of the input" in identities:
        ones = {target: np.ones_like(inputs[target])}
        return _steps(trial.of(trial.with_inputs(ones)), first, steps, lambda _, answer: {"loss": answer["loss"]})
    if "logarithm of the target" not in identities or trial.case.parameters.get("log_target"):
        return False

    def whole(count: int, answer: Answer) -> Answer:
        factors = {name: 2.0**count if name != f"{GRAD}{target}" else 1.0 for name in answer}
        return by_name(answer, factors)

    return _steps(trial, target, steps, whole)


def _steps(trial: Trial, name: str, steps: int, whole: Callable[[int, Answer], Answer]) -> bool:
    first, second, third = (
        whole(count, trial.measure(trial.with_inputs(trial.multiplied([name], 2.0**-count))))
        for count in (0, steps, 2 * steps)
    )
    what = f"the sum for {name} and for 2^-{2 * steps} times as much and twice that for 2^-{steps} times"
    compare(added([first, third]), scaled(second, 2.0), what)
    return True
