"""What must hold of rows of classes: a softmax does not see what is added to a row, or which class stands where."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.testing.checks.trials import (
    Answer,
    Trial,
    added,
    compare,
    finite,
    scaled,
)
from refloss.testing.judging.driver import GRAD

if TYPE_CHECKING:
    from refloss.cases.source import Case

_ADDED = 3  # classes
_FEWEST = 3  # classes that equal steps are taken between


def shift(trial: Trial) -> bool:
    """A constant added to a row's logits changes nothing."""
    if not trial.softmax:
        return False
    shifted = {}
    for name, axis in trial.softmax.items():
        rows = np.moveaxis(trial.case.inputs[name], axis, -1)
        shifted[name] = np.moveaxis(_shifted(rows, trial.far), -1, axis)
    after = trial.measure(trial.with_inputs(shifted))
    compare(trial.answer, after, "before and after a constant is added to the logits of a row")
    return True


def _shifted(rows: np.ndarray, far: float) -> np.ndarray:
    """Rows far apart, each moved by the first of several constants that its type adds exactly."""
    constants = np.array([far, -far, 64.0, -32.0])
    exact = rows.astype(np.float64)
    moved = rows.copy()
    for index in np.ndindex(rows.shape[:-1]):
        first = int(np.ravel_multi_index(index, rows.shape[:-1])) % len(constants) if index else 0
        for constant in np.roll(constants, -first):
            row = (exact[index] + constant).astype(rows.dtype)
            if np.array_equal(row.astype(np.float64), exact[index] + constant):
                moved[index] = row
                break
    return moved


def rows_sum(trial: Trial) -> bool:
    """The gradient's sum over the classes of each row is 0."""
    names = [f"{GRAD}{name}" for name in trial.softmax if f"{GRAD}{name}" in trial.answer]
    for name in names:
        axis = trial.softmax[name.removeprefix(GRAD)]
        sums = trial.answer[name].changed(functools.partial(np.sum, axis=axis))
        compare({name: sums}, {name: sums.changed(np.zeros_like)}, "the sum over a row's classes and 0")
    return bool(names)


def permuted_classes(trial: Trial) -> bool:
    """The loss stays, gradients go with their classes, and so do labels and weights."""
    case = trial.case
    if not trial.classes:
        return False
    name, axis = next(iter(trial.classes.items()))
    order = np.arange(case.inputs[name].shape[axis])[::-1]  # in which the first and the last are elsewhere
    labels_of = np.argsort(order)

    def renamed(labels: np.ndarray) -> np.ndarray:
        within = (labels >= 0) & (labels < len(order))
        return np.where(within, labels_of[np.where(within, labels, 0)], labels)

    moved = {name: renamed(case.inputs[name]) for name in trial.labels}
    before = dict(trial.answer)
    for name, axis in trial.classes.items():
        move = functools.partial(np.take, indices=order, axis=axis)
        moved[name] = move(case.inputs[name])
        if f"{GRAD}{name}" in before:
            before[f"{GRAD}{name}"] = before[f"{GRAD}{name}"].changed(move)
    options = {}
    if trial.labels and "ignore_index" in trial.specification.parameters:
        ignored = trial.ignore_index(trial.labels[0])  # its default may be a class as well
        options = {"ignore_index": int(renamed(np.array(ignored)))} if 0 <= ignored < len(order) else {}
    after = trial.measure(trial.with_inputs(moved, **options))
    compare(before, after, "before and after classes change places")
    return True


def cut_elsewhere(trial: Trial) -> bool:
    """However the classes lie on ranks, the loss stays, and gradients side by side."""
    cut = [(name, each.widths) for name, each in trial.arguments.items() if each.widths]
    for name, widths in cut:
        classes = trial.case.inputs[name].shape[-1]
        third = classes // 3
        for own in ([classes], [1, classes - 1], [third, 0, classes - third], [1] * classes):
            after = trial.measure(trial.with_inputs({widths: np.array(own)}))
            compare(trial.answer, after, f"of classes in one part and in parts of {own}")
    return bool(cut)


def masked_classes(trial: Trial) -> bool:
    """Classes whose logits are −inf, and that nobody asks for, change nothing and have a gradient of 0."""
    case = trial.case
    if not trial.classes or case.parameters.get("label_smoothing") or trial.is_capped:
        return False
    if trial.targets and not trial.labels:
        return False  # distributions ask for all
    if not all(trial.arguments[target.of].batched for target in trial.targets.values()):
        return False  # a class's weights are no logits
    inputs, before = {}, dict(trial.answer)
    for name, axis in trial.classes.items():
        argument = trial.arguments[name]
        # What is resampled is multiplied by 0 as well.
        logit = -trial.far if argument.resampled else -np.inf
        more = functools.partial(_with_more, axis=axis)
        inputs[name] = more(case.inputs[name], 1.0 if argument.role == "class weight" else logit)
        if f"{GRAD}{name}" in before:
            before[f"{GRAD}{name}"] = before[f"{GRAD}{name}"].changed(functools.partial(more, value=0.0))
    for name in trial.labels:
        if trial.targets[name].ignored is None:  # one more than there are classes
            labels, classes = case.inputs[name], trial.ignore_index(name)
            inputs[name] = np.where(labels >= classes, labels + _ADDED, labels)
    after = trial.measure(trial.with_inputs(inputs, **_sizes(trial)))
    compare(before, after, "before and after classes are added whose logits are −inf")
    return True


def _sizes(trial: Trial) -> dict[str, Any]:
    """The parameters that say how many classes there are, where there are some more."""
    parameters, given = trial.specification.parameters, trial.case.parameters
    counts = [name for name, each in parameters.items() if each.structural and each.kind is int and name in given]
    return {name: given[name] + _ADDED for name in counts}


def _with_more(values: np.ndarray, value: float, axis: int) -> np.ndarray:
    shape = list(values.shape)
    shape[axis] = _ADDED
    return np.concatenate([values, np.full(shape, value, values.dtype)], axis)


def equal_steps(trial: Trial) -> bool:
    """Where the logits of three classes are equal steps apart, so are the losses of rows that ask for them.

    The gradients of two labels differ at these alone, by as much at one as at the other.
    """
    axes = {trial.targets[name].of: name for name in trial.labels}
    axes = {name: label for name, label in axes.items() if name in trial.classes}
    several = any(trial.case.inputs[label].ndim == trial.case.inputs[name].ndim for name, label in axes.items())
    if not axes or several or trial.is_capped:
        return False
    count = min(trial.case.inputs[name].shape[trial.classes[name]] for name in axes)
    known = [label for label in range(count) if all(label != trial.ignore_index(name) for name in trial.labels)]
    if len(known) < _FEWEST:
        return False
    asked = (known[len(known) // 2], known[0], known[-1])
    case = _with_steps(trial, asked)
    first, second, third = (trial.measure(_asking(trial, case, label)) for label in asked)
    losses = [{"loss": each["loss"]} for each in (first, second, third)]
    steps = "the sum for classes with logits 0 and −2s and twice that for −s"
    compare(added([losses[0], losses[2]]), scaled(losses[1], 2.0), steps)
    for (one, label), (other, another) in (
        ((first, asked[0]), (second, asked[1])),
        ((second, asked[1]), (third, asked[2])),
    ):
        what = f"of rows that ask for class {label} and of the same that ask for {another}"
        pair = [label, another]
        compare(_without(trial, one, pair), _without(trial, other, pair), what)
        compare(_sum(trial, one, pair), _sum(trial, other, pair), f"the sum of both classes' gradients, {what}")
    return True


def _with_steps(trial: Trial, asked: tuple[int, ...]) -> Case:
    """The case with improbable classes, and one weight for all."""
    inputs = {}
    for name, axis in trial.classes.items():
        values = inputs[name] = trial.case.inputs[name].copy()
        if trial.arguments[name].role == "class weight":
            values[:] = values[0]
            continue
        for i, label in enumerate(asked):
            np.moveaxis(values, axis, 0)[label] = -i * trial.step
    return trial.with_inputs(inputs)


def _asking(trial: Trial, case: Case, label: int) -> Case:
    """The same where every row that counts asks for one class."""
    inputs = {}
    for name in trial.labels:
        labels, ignored = case.inputs[name], trial.ignore_index(name)
        counts = labels < ignored if trial.targets[name].ignored is None else labels != ignored
        inputs[name] = np.where(counts, label, labels)
    return case._replace(inputs=case.inputs | inputs)


def _of_classes(trial: Trial, answer: Answer) -> list[tuple[str, int]]:
    gradients = ((f"{GRAD}{name}", axis) for name, axis in trial.classes.items())
    return [(name, axis) for name, axis in gradients if name in answer]


def _without(trial: Trial, answer: Answer, classes: list[int]) -> Answer:
    """Gradients of all classes but some."""
    return {
        name: answer[name].changed(functools.partial(np.delete, obj=classes, axis=axis))
        for name, axis in _of_classes(trial, answer)
    }


def _sum(trial: Trial, answer: Answer, classes: list[int]) -> Answer:
    """Gradients of some classes, added up."""
    return {
        name: answer[name].changed(functools.partial(_sum_of, classes=classes, axis=axis))
        for name, axis in _of_classes(trial, answer)
    }


def _sum_of(values: np.ndarray, classes: list[int], axis: int) -> np.ndarray:
    return np.asarray(values.take(classes, axis).sum(axis))


def linear_in_the_target(trial: Trial) -> bool:
    """The losses for a target and for 0 add up to twice that for its half, and so do the gradients."""
    names = [name for name in trial.targets if name not in trial.labels and trial.targets[name].role == "classes"]
    names += [trial.specification.required[1]] if "linear in the target" in trial.specification.identities else []
    if not linear_in(trial, names, "target"):
        return False
    if trial.classes and not trial.case.parameters.get("label_smoothing") and not trial.has_z_loss:
        nothing = trial.measure(trial.with_inputs(trial.multiplied(names, 0.0)))
        weightless = {name: each for name, each in nothing.items() if name.removeprefix(GRAD) not in names}
        zeros = {name: each.changed(np.zeros_like) for name, each in weightless.items()}
        compare(weightless, zeros, "for a target of 0 and 0")
    return True


def linear_in(trial: Trial, names: list[str], what: str) -> bool:
    """The losses for some arguments and for 0 add up to twice that for their half, and so do the gradients."""
    if not names:
        return False
    nothing, half = (trial.measure(trial.with_inputs(trial.multiplied(names, factor))) for factor in (0.0, 0.5))
    finite(nothing)
    sums = added([trial.answer, nothing])
    compare(sums, scaled(half, 2.0), f"the sum for its {what} and for 0 and twice that for half of it")
    return True
