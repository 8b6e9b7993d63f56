"""Losses of corresponding elements with a mistaken formula; derivatives are those of the formula, by a complex step.

A formula takes x and t, complex with a tiny imaginary part, and is analytic between its branches, which look at real
parts: f(x + ih) has the imaginary part h·f'(x), with nothing subtracted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.roundoff import real
from refloss.testing.mistakes import alterations
from refloss.testing.mistakes.rows import compute_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from refloss.cases.source import Case

    Formula = Callable[[np.ndarray, np.ndarray], np.ndarray]
    Tensors = dict[str, np.ndarray]
    Step = Callable[["Elements"], Iterator[Tensors]]

STEP = 1e-200


@dataclass(frozen=True, eq=False)
class Elements:
    """Elements in float64; kind is the function whose formula they have, names what x and t are called."""

    kind: str
    names: tuple[str, str]
    x: np.ndarray
    t: np.ndarray
    weight: np.ndarray
    cotangent: np.ndarray
    divisor: float
    reduction: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    by_weight: bool  # whether a mean divides by the sum of weights
    shape: tuple[int, ...]  # of x as it is given

    @property
    def type(self) -> Any:
        """What is computed in."""
        return compute_kind(self.inputs[self.names[0]].dtype)


def elements_of(case: Case) -> Elements | None:
    """The elements of a case; None where it has none."""
    kind, names = case.function, ("", "")
    if kind == "sequence_classification":
        kind, names = _kind_of_sequences(case), ("pooled_logits", "labels")
    elif kind in FORMULAS_OF:
        names = tuple(alterations.specification_of(case).required[:2])  # type: ignore[assignment]
    if not kind or not names[0]:
        return None
    shape = case.inputs[names[0]].shape
    x, t = real(case.inputs[names[0]]), real(case.inputs[names[1]])
    if kind == case.function:
        x, t = np.broadcast_arrays(x, t)
    elif x.shape != t.shape:
        x, t = x.reshape(-1), t.reshape(-1)
    given = case.inputs.get("weight")
    weight = np.ones(x.shape) if given is None else np.broadcast_to(real(given), x.shape)
    by_weight = given is not None and alterations.specification_of(case).mean == "weights"
    reduction = case.parameters.get("reduction", "mean")
    return Elements(
        kind,
        names,
        x,
        t,
        weight,
        real(case.grad_output),
        _divisor(case, kind, x, float(weight.sum()) if by_weight else float(x.size)),
        reduction,
        case.parameters,
        case.inputs,
        by_weight,
        shape,
    )


def _kind_of_sequences(case: Case) -> str:
    if alterations.labels(case) is not None:
        return ""
    kind = case.parameters.get("problem_type")
    count = case.parameters.get("num_labels", case.inputs["pooled_logits"].shape[-1])
    return "mse" if kind == "regression" or (kind is None and count == 1) else "bce_with_logits"


def _divisor(case: Case, kind: str, x: np.ndarray, mean: float) -> float:
    reduction, boxes = case.parameters.get("reduction", "mean"), float(case.parameters.get("num_boxes", 1.0))
    if kind in ("sigmoid_focal", "varifocal"):
        return {"mean": boxes * (x.shape[1] if x.ndim > 1 else 1), "sum": boxes}.get(reduction, 1.0)
    return {"mean": mean, "batchmean": float(x.shape[0] if x.ndim else 1)}.get(reduction, 1.0)


def derivatives(formula: Formula, given: Elements) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, and derivatives for x and t."""
    x, t = given.x.astype(complex), given.t.astype(complex)
    of_x, of_t = formula(x + STEP * 1j, t), formula(x, t + STEP * 1j)
    return of_x.real, of_x.imag / STEP, of_t.imag / STEP


def tensors(
    given: Elements,
    value: np.ndarray | None = None,
    for_x: np.ndarray | None = None,
    for_t: np.ndarray | None = None,
    divisor: float | None = None,
    weight: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """What values and derivatives of elements come to; those that are not given are not among them."""
    divisor = given.divisor if divisor is None else divisor
    weight = given.weight if weight is None else weight
    found: dict[str, np.ndarray] = {}
    if value is not None:
        weighted = weight * value / divisor
        found["loss"] = weighted if given.reduction == "none" else np.asarray(weighted.sum())
        if "weight" in given.inputs:
            mean = found["loss"] if given.by_weight and given.reduction == "mean" else 0.0
            found["grad.weight"] = given.cotangent / divisor * (value - mean)
    for name, slope in zip(given.names, (for_x, for_t), strict=True):
        if slope is not None:
            found[f"grad.{name}"] = gathered(given.cotangent / divisor * weight * slope, given.inputs[name].shape)
    return found


def gathered(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A gradient of all elements as that of an array of a shape, which is broadcast to them where it is not theirs."""
    if math.prod(shape) == gradient.size:
        return np.reshape(gradient, shape)
    own = (1,) * (gradient.ndim - len(shape)) + shape
    shared = tuple(axis for axis, (kept, size) in enumerate(zip(own, gradient.shape, strict=True)) if kept != size)
    return np.asarray(np.add.reduce(gradient, shared, keepdims=True)).reshape(shape)


def of_formula(given: Elements, formula: Formula) -> dict[str, np.ndarray]:
    """The tensors of another formula."""
    return tensors(given, *derivatives(formula, given))


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + e^x) of complex numbers."""
    above = x.real > 0
    small = np.exp(np.where(above, -x, x))
    # NumPy's log1p of complex numbers has few digits where they are small.
    return np.asarray(np.where(above, x, 0) + np.log1p(small.real) + 1j * (small.imag / (1 + small.real)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1/(1 + e^−x) of complex numbers."""
    small = np.exp(np.where(x.real > 0, -x, x))
    return np.asarray(np.where(x.real > 0, 1, small) / (1 + small))


def size(d: np.ndarray) -> np.ndarray:
    """|d| of complex numbers, with the derivative 0 at 0."""
    return np.asarray(d * np.sign(d.real))


def logarithm(t: np.ndarray, tiny: float = 0.0) -> np.ndarray:
    """log max(t, tiny) of complex numbers."""
    return np.log(np.where(t.real < tiny, tiny, t))


FORMULAS_OF = (
    "mse",
    "l1",
    "smooth_l1",
    "huber",
    "bce",
    "bce_with_logits",
    "kl_div",
    "soft_margin",
    "hinge_embedding",
    "poisson_nll",
    "gaussian_nll",
    "margin_ranking",
    "preference_loss",
    "kto",
    "sigmoid_focal",
    "varifocal",
)
