"""A function on trial: what it returns for a case, and whether two answers agree as far as rounding lets them."""

from __future__ import annotations

import functools
import inspect
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.source import changed_cotangent
from refloss.error_model.chain import z_factor
from refloss.registry import FUNCTIONS
from refloss.specification import Elementwise, Softmax
from refloss.testing.judging.driver import GRAD
from refloss.testing.judging.judge import question
from refloss.testing.spacing import FLOATS, spacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from refloss.cases.source import Case
    from refloss.specification import Argument, Specification
    from refloss.testing.judging.driver import Driver

# What adding and scaling results rounds here, in float64.
_ROUNDING = 2.0**-50
# The largest share of a wrong element that its rounding may be, whatever cancels in the right ones.
_MOST = 0.25
# How far a row's logits are moved, at which distance of two classes' logits one of them is improbable, and what shrinks
# numbers: exact in the type, and beyond what its exponentials hold.
_FAR = {"float16": 240.0, "bfloat16": 240.0}
_STEP = {"float64": 512.0}
_SMALL = {"float16": 2.0**-2}


class ViolationError(Exception):
    """A property does not hold."""


class Measured(NamedTuple):
    """Values, and how far off an honest function's may be."""

    value: np.ndarray
    allowed: np.ndarray

    @np.errstate(invalid="ignore", over="ignore")  # a broken function's values may be anything
    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> Measured:
        """Elements taken, put elsewhere or added up."""
        return Measured(change(self.value), change(self.allowed))

    @np.errstate(invalid="ignore", over="ignore")
    def scaled(self, factor: float) -> Measured:
        """Values times a number."""
        return Measured(factor * self.value, abs(factor) * self.allowed)


Answer = dict[str, Measured]  # "loss", and "grad.<name>"


class Sizes(NamedTuple):
    """How large a tensor of a function is, beside the right one."""

    factor: float  # of the right one's largest element, at least 1
    relative: float  # the largest bound over the largest element


class Trial:
    """A case that a function is tried on, and how its arguments lie; bits: whether rows are to be equal in all bits."""

    def __init__(self, driver: Driver, compute_dtype: str, case: Case, *, bits: bool = False) -> None:
        self.driver, self.case, self.bits = driver, case, bits
        self.function = FUNCTIONS[case.function]
        self.specification = self.function.specification
        self._compute_dtype = compute_dtype
        self._sizes: dict[str, Sizes] = {}
        self.far = _FAR.get(compute_dtype, 1000.0)
        self.step = _STEP.get(compute_dtype, 64.0)
        self.small = _SMALL.get(compute_dtype, 2.0**-10)

    def of(self, case: Case) -> Trial:
        """The same function on trial with another case."""
        return Trial(self.driver, self._compute_dtype, case, bits=self.bits)

    @functools.cached_property
    def answer(self) -> Answer:
        """What the function returns."""
        return self.measure(self.case)

    def call(self, native: Case) -> dict[str, np.ndarray]:
        """The loss and the gradients that the function returns."""
        returned = self.driver.call(native)
        tensors = {name: value for name, value in returned.tensors.items() if name.startswith(GRAD)}
        return {name: self.driver.array(value, name) for name, value in ({"loss": returned.loss} | tensors).items()}

    def measure(self, case: Case) -> Answer:
        """What the function returns for another case, and how far off it may be."""
        asked = question(case, self._compute_dtype)
        answer: Answer = {}
        for name, got in self.call(self.driver.native(case)).items():
            if name not in asked.expected or got.shape != asked.expected[name].shape:
                expected = f"shape {asked.expected[name].shape}" if name in asked.expected else "no such tensor"
                raise ViolationError(f"{name} has shape {got.shape}; expected {expected}")
            right = asked.expected[name].astype(np.float64)
            bound = np.broadcast_to(np.asarray(asked.bounds[name]), got.shape)
            answer[name] = self._measured(name, got, right, bound)
        return answer

    @np.errstate(invalid="ignore", over="ignore")
    def _measured(self, name: str, got: np.ndarray, right: np.ndarray, bound: np.ndarray) -> Measured:
        """Values, with allowances of their own size: what is larger by a factor is rounded by that much more."""
        value, dtype = got.astype(np.float64), got.dtype if got.dtype in FLOATS else np.float64
        value = np.where(np.isnan(right), 0.0, value)  # what is undefined is not compared
        size, sizes = np.abs(right), _sizes(value, right, bound)
        known = self._sizes.setdefault(name, sizes)
        factor = max(sizes.factor, known.factor)
        rounding = spacing(factor * np.nan_to_num(size + bound), dtype) / 2
        allowed = factor * bound + rounding
        beyond = np.abs(value) > factor * size + allowed
        if beyond.any():
            # No element of the right answer says how such a one is rounded; its terms are as large as its row.
            row = np.where(np.isfinite(value), np.abs(value), 0.0)
            if (axis := self._class_axis(name)) is not None and row.size:
                row = np.broadcast_to(row.max(axis=axis, keepdims=True), row.shape)
            relative = min(known.relative or sizes.relative, _MOST)
            allowed = np.where(beyond, np.maximum(allowed, relative * row + spacing(row, dtype)), allowed)
        return Measured(value, allowed)

    def _class_axis(self, name: str) -> int | None:
        argument = self.arguments.get(name.removeprefix(GRAD))
        return None if argument is None else argument.class_axis

    @property
    def is_reduced(self) -> bool:
        """Whether the loss is one number."""
        return self.specification.is_reduced(self.case.parameters)

    @functools.cached_property
    def arguments(self) -> dict[str, Argument]:
        """Those that are given."""
        return {name: each for name, each in self.specification.arguments.items() if name in self.case.inputs}

    @functools.cached_property
    def rows(self) -> list[str]:
        """Arguments whose first axis is that of the batch; a weight may be the same for all rows."""
        shape = elements(self.specification, self.case)
        return [
            name
            for name, argument in self.arguments.items()
            if argument.batched and not (argument.broadcast and self.case.inputs[name].shape[:1] != shape[:1])
        ]

    @property
    def row_count(self) -> int:
        """How many rows a batch has."""
        return len(self.case.inputs[self.rows[0]])

    @functools.cached_property
    def targets(self) -> dict[str, Argument]:
        """Arguments that say which classes there should be."""
        roles = ("labels", "classes", "indices")
        return {name: each for name, each in self.arguments.items() if each.role in roles and each.of}

    @property
    def labels(self) -> list[str]:
        """Those that hold indices into the axis of classes; some may be numbers for every class instead."""
        has_classes = self.specification.has_classes
        if has_classes is not None and not has_classes(self.case):
            return []
        return [name for name in self.targets if self.case.inputs[name].dtype.kind in "iu"]

    @property
    def classes(self) -> dict[str, int]:
        """Arguments with an axis of classes, and which it is; none where no class is asked for."""
        if not self.targets:
            return {}
        axes = {name: each.class_axis for name, each in self.arguments.items() if each.class_axis is not None}
        others = [name for name in self.targets if name not in self.labels]
        if any(self.case.inputs[name].ndim < self.case.inputs[self.targets[name].of].ndim for name in others):
            return {}  # a number for each row
        # What belongs to classes, not to rows, may have them on another axis than the rows' distributions.
        of_rows = {name: self.arguments[self.targets[name].of].batched for name in others}
        return axes | {name: axes[self.targets[name].of] if of_rows[name] else -1 for name in others}

    @property
    def softmax(self) -> dict[str, int]:
        """Arguments that are nothing but a softmax to the loss, and their axis of classes."""
        changed = isinstance(self.specification, Softmax) and self.specification.added is not None
        each = any(name not in self.labels and target.role == "labels" for name, target in self.targets.items())
        if changed or each or self.is_capped or self.has_z_loss:
            return {}
        return {name: axis for name, axis in self.classes.items() if self.arguments[name].activation == "softmax"}

    @property
    def is_capped(self) -> bool:
        """Whether logits go through what is not linear."""
        return self.case.parameters.get("softcap") is not None

    @property
    def has_z_loss(self) -> bool:
        """Whether rows have something beside the likelihood of their targets."""
        return z_factor(self.case.parameters) != 0.0

    def ignore_index(self, name: str) -> int:
        """The label of rows that do not count."""
        target = self.targets[name]
        if target.ignored is None:
            logits, axis = self.case.inputs[target.of], self.classes[target.of]
            return int(logits.shape[axis])
        return int(self.case.parameters.get("ignore_index", target.ignored))

    def option(self, name: str) -> Any:
        """A parameter's value, or its default."""
        default = inspect.signature(self.function.call).parameters[name].default
        return self.case.parameters.get(name, default)

    @property
    def is_apart(self) -> bool:
        """Whether what a row gets does not depend on how many rows count."""
        parameters = self.case.parameters
        words = parameters.get("reduction"), parameters.get("aggregation")
        is_mean = self.specification.reduces and not {"sum", "none"}.intersection(words)
        return not is_mean or self.items in parameters or self.specification.mean == "num_boxes"

    @property
    def items(self) -> str:
        """The name of the parameter that replaces what a mean divides by."""
        return "num_items" if self.specification.mean == "tokens" else "num_items_in_batch"

    @property
    def are_elements(self) -> bool:
        """Whether arguments are arrays of corresponding numbers."""
        others = ("boxes", "indices", "similarities")
        return not any(each.class_axis is not None or each.nested or each.role in others for each in self._all)

    @property
    def _all(self) -> list[Argument]:
        return list(self.specification.arguments.values())

    def is_held(self, case: Case) -> bool:
        """Whether the framework's arrays hold a case's integers."""
        held = self.driver.held(self.driver.native(case)).inputs
        return all(np.array_equal(held[name], value) for name, value in case.inputs.items() if value.dtype.kind in "iu")

    @functools.cached_property
    def ignoring(self) -> Trial | None:
        """The case with a first row that does not count; None where no label says that."""
        if not self.labels or not self.specification.padded or self.row_count < 2:
            return None
        inputs = {name: self.case.inputs[name].copy() for name in self.labels}
        for name, labels in inputs.items():
            labels[0] = self.ignore_index(name)
        return self.of(self.with_inputs(inputs))

    def with_inputs(self, inputs: dict[str, np.ndarray], **parameters: Any) -> Case:
        """The case with some inputs and parameters replaced."""
        return self.case._replace(inputs=self.case.inputs | inputs, parameters=self.case.parameters | parameters)

    def multiplied(self, names: Iterable[str], factor: float) -> dict[str, np.ndarray]:
        """Some inputs times a power of two, or 0."""
        inputs = self.case.inputs
        return {name: (inputs[name].astype(np.float64) * factor).astype(inputs[name].dtype) for name in names}

    def with_rows(self, change: Callable[[np.ndarray], np.ndarray], **parameters: Any) -> Case:
        """The case with its rows changed, and the cotangents of their losses."""
        case = self.with_inputs({name: change(self.case.inputs[name]) for name in self.rows}, **parameters)
        return case if self.is_reduced else case._replace(grad_output=_of_rows(case.grad_output, change))

    @np.errstate(invalid="ignore", over="ignore")  # a broken function's values may be anything
    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> Answer:
        """The answer with its rows changed."""
        return self.changed_rows(self.answer, change)

    def changed_rows(self, answer: Answer, change: Callable[[np.ndarray], np.ndarray]) -> Answer:
        """An answer with its rows changed, among them losses that are not reduced."""
        return {
            name: measured.changed(change) if name != "loss" or not self.is_reduced else measured
            for name, measured in answer.items()
        }


def _of_rows(cotangent: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The cotangents of changed rows; one number is that of all of them."""
    return changed_cotangent(cotangent, lambda values: change(values) if np.ndim(values) else values)


@np.errstate(invalid="ignore", divide="ignore")
def _sizes(value: np.ndarray, right: np.ndarray, bound: np.ndarray) -> Sizes:
    """How large a tensor is, by its finite elements."""
    largest, of_right, of_bound = (
        float(np.abs(each).max(initial=0.0, where=np.isfinite(each))) for each in (value, right, bound)
    )
    if not of_right:
        return Sizes(1.0, 0.0)
    return Sizes(max(1.0, largest / of_right), of_bound / of_right)


def gradients(answer: Answer) -> Answer:
    """An answer without its loss."""
    return {name: measured for name, measured in answer.items() if name != "loss"}


def scaled(answer: Answer, factor: float) -> Answer:
    """An answer times a number."""
    return {name: measured.scaled(factor) for name, measured in answer.items()}


def by_name(answer: Answer, factors: Mapping[str, float]) -> Answer:
    """Those tensors of an answer that have a factor, times it."""
    return {name: answer[name].scaled(factor) for name, factor in factors.items() if name in answer}


@np.errstate(invalid="ignore", over="ignore")
def added(answers: list[Answer]) -> Answer:
    """The sum of answers, element by element."""
    return {
        name: Measured(*(np.sum([answer[name][i] for answer in answers if name in answer], axis=0) for i in range(2)))
        for name in {name: None for answer in answers for name in answer}
    }


def joined(answers: list[Answer], *, is_reduced: bool, axis: int = 0) -> Answer:
    """The answer of all rows, of those of parts; losses are added up where they are reduced."""
    joined = {
        name: Measured(*(np.concatenate([answer[name][i] for answer in answers], axis) for i in range(2)))
        for name in answers[0]
        if name != "loss" or not is_reduced
    }
    return joined | (added([{"loss": answer["loss"]} for answer in answers if "loss" in answer]) if is_reduced else {})


def compare(first: Answer, second: Answer, what: str, *, bits: bool = False) -> None:
    """Raise where two answers differ by more than both may be off, or at all. No answer to a case here is NaN."""
    for name, (a, of_a) in first.items():
        if name not in second:
            continue
        b, of_b = second[name]
        allowed = np.zeros(a.shape) if bits else of_a + of_b + _ROUNDING * np.nan_to_num(np.abs(a))
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = np.abs(a - b)
            wrong = ~((difference <= allowed) | (a == b))
            if not wrong.any():
                continue
            excess = np.where(wrong, np.where(np.isfinite(difference), difference / allowed, np.inf), 0.0)
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(excess)), excess.shape))
        room = "the same bits are asked for" if bits else f"rounding may make a difference of {allowed[index]:.2g}"
        digits = 17 if bits else 9
        raise ViolationError(
            f"{element(name, index)} is {a[index]:.{digits}g} and {b[index]:.{digits}g}, {what}; {room}"
        )


def finite(answer: Answer) -> None:
    """Raise where an answer is no number, or infinite."""
    for name, (value, _) in answer.items():
        if not np.isfinite(value).all():
            index = tuple(int(i) for i in np.unravel_index(int(np.argmin(np.isfinite(value))), value.shape))
            raise ViolationError(f"{element(name, index)} is {value[index]:.9g}; the right answer is a finite number")


def element(name: str, index: tuple[int, ...]) -> str:
    """An element as one writes it."""
    return f"{name}[{', '.join(str(i) for i in index)}]" if index else name


def elements(specification: Specification, case: Case) -> tuple[int, ...]:
    """The shape of what has rows along its first axis: of the elements of a case, or of its first array."""
    if isinstance(specification, Elementwise):
        return specification.elements(case.inputs)
    return next(iter(case.inputs.values())).shape


def divisor(trial: Trial, case: Case) -> float | None:
    """What a case's mean divides a sum over rows by; None where no one number of its inputs is that."""
    specification = trial.specification
    if specification.divisor is not None:
        return specification.divisor(case)
    shape = elements(specification, case)
    names = [name for name in specification.named("weight", "class weight") if name in case.inputs]
    weights = [case.inputs[name].astype(np.float64) for name in names]
    if specification.mean == "labels":
        return _labels_counted(trial, case, weights)
    if specification.mean == "weights" and weights:
        return None  # the weights' own gradients are of the whole
    if case.parameters.get("reduction") == "batchmean" or specification.mean == "rows":
        return float(shape[0])
    return float(math.prod(shape)) if specification.mean in ("elements", "weights") else None


def _labels_counted(trial: Trial, case: Case, weights: list[np.ndarray]) -> float:
    """The sum of the weights of the labels that count; the number of rows for distributions."""
    name, target = next(iter(trial.targets.items()))
    labels, logits = case.inputs[name], case.inputs[target.of]
    if labels.dtype.kind not in "iu":
        return float(logits.size / logits.shape[trial.classes[target.of]])
    counted = labels[labels != trial.ignore_index(name)]
    return float(weights[0][counted].sum() if weights else counted.size)
