"""The one generator of cases: what any loss may be given, from its specification."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.cases.draws import SIZES, Drawn, Draws, Limits, Seeded
from refloss.cases.source import DTYPES, Case
from refloss.files import flattened
from refloss.kernels.maps import exponentials, sigmoids
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from refloss.registry import Function
    from refloss.specification import Specification

_LAYOUTS = ("contiguous", "read-only", "transposed", "strided", "reversed")
_FEW_ROWS = 3  # of fresh cases, so that a folder of them stays small


def draw(function: Function, draws: Draws, name: str = "drawn") -> Case:
    """A case that a function accepts; its id ends in a name."""
    specification = function.specification
    drawn = specification.draw(draws) if specification.draw else _by_roles(specification, draws)
    laid_out: dict[str, np.ndarray] = {}
    for argument, value in drawn.inputs.items():
        layout = _LAYOUTS[0] if draws.limits.exact else draws.one_of(*_LAYOUTS)
        laid_out |= {part: _laid_out(array, layout) for part, array in flattened(argument, value).items()}
    grad_output = drawn.cotangent
    if grad_output is None:
        grad_output = draws.cotangent(() if specification.is_reduced(drawn.parameters) else drawn.loss_shape)
    return Case(f"{function.name}-{name}", function.name, laid_out, drawn.parameters, grad_output)


def seeded(function: Function, limits: Limits, seed: int) -> Iterator[Case]:
    """Cases that follow from a seed, the same on every machine: the plainest, and one with each value worth trying."""
    values = [(name, value) for name, each in function.specification.parameters.items() for value in each.values]
    yield draw(function, Draws(Seeded(1000 * seed, plainness=1.0), limits), f"mean-{seed}")
    for i, (name, value) in enumerate(values, 1):
        yield draw(function, Draws(Seeded(1000 * seed + i), limits, {name: value}), f"{name}-{value}-{seed}")


def fresh(function: str, seed: int, count: int, dtypes: Collection[str] = ()) -> list[Case]:
    """Cases that nobody has seen, from a seed: in every format, one option after the other, large and small.

    As many as asked for, in some dtypes if they are named. Their values are finite but for classes of −inf, and none is
    empty; ids are <function>-seed<seed>-<k>, whatever the dtypes of the others.
    """
    numbers = (k for k in itertools.count() if not dtypes or _dtype(k) in dtypes)
    return [_fresh(FUNCTIONS[function], seed, k) for k in itertools.islice(numbers, count)]


def _dtype(k: int) -> str:
    """The formats take turns."""
    return list(DTYPES)[k % len(DTYPES)]


def _fresh(function: Function, seed: int, k: int) -> Case:
    values = [(name, value) for name, each in function.specification.parameters.items() for value in each.values]
    sizes = list(SIZES.values())
    limits = Limits((_dtype(k),), _FEW_ROWS, extreme=False, sizes=sizes[k // len(DTYPES) % 2])
    given = dict([values[k % len(values)]]) if values and k % 3 else {}
    for attempt in itertools.count():
        chooser = Seeded((seed << 40) + (k << 16) + attempt, plainness=0.25)
        case = draw(function, Draws(chooser, limits, given), f"seed{seed}-{k}")
        if all(value.size for name, value in case.inputs.items() if name in function.specification.required):
            return case
    raise AssertionError


def of_every_format(function: Function) -> list[Case]:
    """Golden cases of a function that has none which somebody wrote: finite values, and some of each format."""
    return [
        case._replace(id=f"{case.id}-{dtype}")
        for seed, dtype in enumerate(DTYPES)
        for case in seeded(function, Limits((dtype,), extreme=False), seed)
    ]


def _laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another order of memory, or in memory that cannot be written to."""
    if layout == "strided" and array.ndim:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "reversed" and array.ndim:
        return array[..., ::-1].copy()[..., ::-1]
    result = np.array(array, order="F" if layout == "transposed" else "C")
    result.flags.writeable = layout != "read-only"
    return result


def _by_roles(specification: Specification, draws: Draws) -> Drawn:
    """Arrays of what the arguments hold, and some of the values that are worth trying of each parameter."""
    parameters = draws.parameters(specification.parameters)
    first = specification.arguments[specification.required[0]]
    if first.role == "boxes":
        return _pairs_of_boxes(specification, draws, parameters)
    if first.class_axis is not None:
        return _rows_of_classes(specification, draws, parameters)
    return _elements(specification, draws, parameters)


def _elements(specification: Specification, draws: Draws, parameters: dict[str, Any]) -> Drawn:
    """Arrays of corresponding elements. Some targets are hit, or nearly: the first argument is what they ask for."""
    shape = draws.elements(specification.axes)
    tensors: dict[str, np.ndarray] = {}
    for name, argument in specification.arguments.items():
        if argument.role == "probabilities":
            tensors[name] = _probabilities(specification, draws, tensors, shape)
        elif argument.role == "signs":
            tensors[name] = draws.signs(*shape)
        elif argument.role == "log-probabilities":
            tensors[name] = draws.log_probabilities(*shape)
        elif argument.role == "weight":
            if draws.limits.exact and tensors.keys() & set(specification.named("weight")):
                continue
            tensors |= _weight(name, draws, shape, broadcast=argument.broadcast)
        else:
            values = draws.logits(*shape)
            hit = draws.uniform(*shape) < draws.one_of(0.0, 0.5) if tensors and argument.role == "values" else False
            tensors[name] = np.where(hit, next(iter(tensors.values())), values) if tensors else values
    return Drawn(tensors, parameters, shape[:1] if specification.per == "row" else shape)


def _probabilities(
    specification: Specification, draws: Draws, tensors: dict[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    """Any, or those that the first argument predicts."""
    if draws.limits.exact or not tensors or not draws.maybe():
        return draws.probabilities(*shape, ends=bool(tensors))
    name, values = next(iter(tensors.items()))
    role = specification.arguments[name].role
    # Not by the machine's exponentials: cases are the same everywhere.
    functions = {"logits": sigmoids, "log-probabilities": exponentials}
    predicted = functions[role](values) if role in functions else values
    return draws.cast(np.clip(draws.near(predicted), 0.0, 1.0))


def _weight(name: str, draws: Draws, shape: tuple[int, ...], *, broadcast: bool) -> dict[str, np.ndarray]:
    if not draws.maybe():
        return {}
    broadcast = broadcast and not draws.limits.exact
    # A weight of several axes less, or of sizes of 1, is broadcast.
    narrow = shape[draws.size(0, len(shape)) :] if broadcast else shape
    narrow = tuple(1 if broadcast and draws.maybe() else size for size in narrow)
    return {name: draws.weights(*narrow)}


def _rows_of_classes(specification: Specification, draws: Draws, parameters: dict[str, Any]) -> Drawn:
    """Rows of classes on axis 1 with a label each, or a distribution, and weights of classes."""
    (name, logits), (target_name, target) = list(specification.arguments.items())[:2]
    classes, rows = draws.classes(), draws.row_shape()
    if draws.limits.exact and parameters.get("reduction") == "none":
        rows = rows[:1]
    shape = (*rows[:1], classes, *rows[1:])
    axis = min(1, len(shape) - 1)
    if logits.role == "logits":
        tensors = {name: draws.logits(*shape, axis=axis)}
    else:
        tensors = {name: draws.log_probabilities(*shape)}
    if target.role == "classes" and draws.maybe():
        parameters.pop("ignore_index", None)
        tensors[target_name] = _distributions(draws, tensors[name], axis)
    else:
        ignore_index = int(parameters.get("ignore_index", -100 if target.ignored is None else target.ignored))
        labels = tensors[target_name] = draws.labels(rows, classes, ignore_index)
        if logits.role == "logits":
            sharp = parameters.get("label_smoothing", 0.0) == 0.0
            draws.adverse(tensors[name], axis, labels, labels == ignore_index, masks=sharp)
    for weight in specification.named("class weight"):
        if draws.maybe():
            tensors[weight] = draws.class_weights(classes)
    return Drawn(tensors, parameters, rows)


def _distributions(draws: Draws, logits: np.ndarray, axis: int) -> np.ndarray:
    """Any, or the softmax of rows: a teacher whose student has learnt, sure where the student is."""
    if draws.limits.exact or not logits.size or not draws.maybe():
        return draws.probabilities(*logits.shape, ends=True)
    rows = np.moveaxis(logits.astype(np.float64), axis, 0)
    terms = exponentials(rows - rows.max(0))
    # One class after the other: the order in which NumPy adds is the machine's.
    return draws.near(np.moveaxis(terms / functools.reduce(np.add, terms), 0, axis))


def _coinciding(first: np.ndarray, second: np.ndarray, draws: Draws) -> np.ndarray:
    """Second boxes: as they are, with some coordinates of the first ones, or next to these."""
    kind = draws.one_of("apart", "shared", "near")
    if kind == "apart":
        return second
    if kind == "near":
        return first * (1.0 + 2.0**-18 * np.round(2.0 * draws.uniform(*first.shape) - 1.0))
    # Corners of one box are shared in pairs, or it might have none in order.
    shared = np.repeat(draws.uniform(*first.shape[:-1], 2) < 0.5, 2, axis=-1)[..., [0, 2, 1, 3]]
    return np.where(shared, first, second)


def _pairs_of_boxes(specification: Specification, draws: Draws, parameters: dict[str, Any]) -> Drawn:
    """Boxes that correspond, as corners unless a parameter says otherwise."""
    shape = draws.row_shape()
    if draws.limits.sizes:
        shape = (*shape[:1], draws.classes())
    tensors = {name: draws.boxes(*shape) for name in specification.named("boxes")}
    if parameters.get("box_format") != "cxcywh":
        tensors = {
            name: np.concatenate([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], axis=-1)
            for name, boxes in tensors.items()
        }
    if not draws.limits.exact:
        first, second = tensors.values()
        tensors = dict(zip(tensors, (first, _coinciding(first, second, draws)), strict=True))
    return Drawn({name: draws.cast(boxes) for name, boxes in tensors.items()}, parameters, shape)
