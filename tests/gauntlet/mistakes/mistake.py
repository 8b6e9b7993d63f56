"""What a mistake is, and what many are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss.cases.source import DTYPES
from tests.gauntlet.honest import HONEST
from tests.gauntlet.kernels import Kernel, with_steps
from tests.gauntlet.wrapped import Head

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case


TUTORIALS = "tutorial kernels"


class Mistake(NamedTuple):
    """A mistake, and what is known of it."""

    name: str
    report: str  # repository#number, or words where nobody has reported it
    functions: tuple[str, ...]
    kernel: Callable[[str], Kernel]  # of the name of a function
    judged: str
    shows: Callable[[Case], bool] | None = None
    why: str = ""  # in words, where it shows
    cases: Callable[[str], list[Case]] | None = None  # where no golden case can be large enough
    dtypes: tuple[str, ...] = tuple(DTYPES)  # in which there are cases that it shows in


def stepped(base: type[Kernel] | None = None, **steps: Any) -> Callable[[str], Kernel]:
    """Kernels of functions, with steps replaced."""
    return lambda function: with_steps(base or HONEST.get(function, Head), **steps)(function)


def without(name: str, function: str) -> Kernel:
    """A kernel that has never heard of an argument."""
    honest = HONEST[function]

    def answer(self: Kernel, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Any:
        known = {key: value for key, value in inputs.items() if key != name}
        options = {key: value for key, value in parameters.items() if key != name}
        loss, grads, *components = honest.answer(self, known, options, cotangent)
        if name == "weight" and name in inputs and getattr(self, "weight_differentiable", False):
            grads = grads | {name: np.zeros_like(inputs[name])}
        return loss, grads, *components

    return with_steps(honest, answer=answer)(function)


def ignored(name: str, report: str, functions: tuple[str, ...]) -> Mistake:
    """An argument that is ignored."""
    words = f"{name} is ignored"
    return Mistake(
        words, report, functions, lambda function: without(name, function), words, has(name), f"where {name} is given"
    )


def of_gradients(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[str], Kernel]:
    """A kernel whose gradients are changed at the end."""

    def kernel(function: str) -> Kernel:
        honest = HONEST[function]

        def answer(self: Kernel, *arguments: Any) -> Any:
            loss, grads, *components = honest.answer(self, *arguments)
            return loss, {name: change(value) for name, value in grads.items()}, *components

        return with_steps(honest, answer=answer)(function)

    return kernel


def from_above(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[str], Kernel]:
    """A kernel that takes the upstream gradient for another."""
    return stepped(upstream=lambda self, cotangent, like: change(np.asarray(cotangent).astype(like.dtype)))


def logits_of(case: Case) -> list[np.ndarray]:
    """The arrays that have an axis of classes."""
    names = ("logits", "pooled_logits", "start_logits", "end_logits", "auxiliary_logits", "input")
    return [case.inputs[name] for name in names if name in case.inputs]


def class_count(case: Case) -> int:
    """How many classes a row has."""
    first = logits_of(case)[0]
    if case.function in ("cross_entropy", "nll", "semantic_segmentation"):
        return int(first.shape[min(1, first.ndim - 1)])
    return int(case.parameters.get("vocab_size") or case.parameters.get("num_labels") or first.shape[-1])


def labels_of(case: Case) -> np.ndarray:
    """The labels of rows; empty where there are distributions or values."""
    names = ("shift_labels", "labels", "target", "start_positions")
    given = next(case.inputs[name] for name in names if name in case.inputs)
    return given if given.dtype.kind in "iu" else np.zeros(0, np.int64)


def soft(case: Case) -> bool:
    """Whether rows are compared with distributions."""
    return case.function == "cross_entropy" and case.inputs["target"].dtype.kind not in "iu"


def has(name: str) -> Callable[[Case], bool]:
    """Whether a case has an argument."""
    return lambda case: name in case.inputs or name in case.parameters
