"""How far honest losses of corresponding elements may be from the exact ones.

Notation as in softmax: u and v are unit roundoffs, s(n) what a sum of n terms costs (roundoff). N elements have weights
w_i; c is the cotangent over the normaliser D. Every number on the way is a sum of terms with an error of k·u of their
magnitudes, where k counts roundings (STEPS). So with T the sum of a value's magnitudes and G that of a derivative's,

    |δL|    ≤ (k·u + s(N))·Σ w_i·T_i / D
    |δg_i|  ≤ k·u·|c|·w_i·G_i, and s(N) more where D = Σ w_i
    |δℓ_i|  ≤ (k·u + v)·w_i·T_i, and |δσ_i| ≤ k·u·σ_i for what is not summed
    |δ∂w_i| ≤ (k·u + s(N))·|c|·(T_i + T̄), with T̄ the mean where D = Σ w_i depends on weights, else 0

What the terms are is said in a loss's specification. Where they are larger than the result, an honest implementation
subtracts: log1p(−p) from log p, t from p, (1 − t)·x from log σ(x); there digits may be lost. 1 − p is off by u, which
is an absolute error of its logarithm, hence the 1 among the terms. A step across a kink changes no value by more: the
pieces meet there.

Numbers below tiny may be lost: an element's loss or its product with a weight, w_i·|c|·G_i as a whole, G_i before it is
multiplied, |c| before it multiplies w_i·G_i.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import Aligned, Bound, total, whole
from refloss.roundoff import STEPS, Roundoff

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.specification import Elementwise, Magnitudes


class _Part(NamedTuple):
    """What the bounds of a part of the elements are made of."""

    input: np.ndarray
    weight: np.ndarray | float
    cotangent: np.ndarray
    magnitudes: Magnitudes


def _with_last_axis(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.ndim == 0:
        return array.reshape((1,) * len(shape))
    return array[..., None] if array.ndim < len(shape) else array


def _shared_axes(narrow: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis, (own, size) in enumerate(zip(narrow, shape, strict=True)) if own != size)


def bounds(specification: Elementwise, case: Case, unit: Roundoff) -> dict[str, Bound]:
    """Those of a loss whose terms its specification has."""
    names = specification.required
    shape = np.shape(case.inputs[names[0]])
    # An array that elements may share the numbers of lacks the last axis, or has size 1 there or elsewhere.
    thirds = {name: _with_last_axis(case.inputs[name], shape) for name in names[2:]}
    elements = Aligned(shape, case.inputs | thirds | {"grad_output": case.grad_output})
    weighted = "weight" in case.inputs
    by_weight = weighted and specification.mean == "weights"
    reduction = case.parameters.get("reduction", "mean")

    @functools.lru_cache(maxsize=1)
    def at(first: int, last: int) -> _Part:
        own = elements.part(first, last)
        magnitudes = specification.magnitudes(own[names[0]], own[names[1]], case._replace(inputs=own), unit)
        weight = np.abs(own["weight"]) if weighted else 1.0
        return _Part(own[names[0]], weight, np.abs(own["grad_output"]), magnitudes)

    def value(first: int, last: int) -> np.ndarray:
        here = at(first, last)
        return np.asarray(here.weight * here.magnitudes.value)

    count: float = elements.size
    if by_weight and reduction == "mean":
        count = total(elements.size, lambda first, last: np.abs(elements.part(first, last)["weight"]))
    divisor = np.float64({"mean": count, "batchmean": shape[0] if shape else 1}.get(reduction, 1.0))
    off, off_sum = STEPS * unit.between, STEPS * unit.between + unit.sum(elements.size)
    loss = Bound(shape, lambda first, last: off_sum * value(first, last) + 2 * unit.tiny)
    mean = np.float64(0.0)
    if reduction != "none":
        reduced = np.float64(total(elements.size, value)) / divisor
        mean = reduced if by_weight and reduction == "mean" else mean
        loss = whole(off_sum * reduced, lost=unit.tiny * (1.0 + 2.0 * elements.size / divisor))

    def slope(first: int, last: int, of: str) -> np.ndarray:
        here = at(first, last)
        terms, coefficient = getattr(here.magnitudes, of), here.cotangent / divisor
        lost = unit.tiny * (1.0 + here.cotangent * (1.0 + here.weight / divisor) + (1.0 + here.weight) * terms)
        if of == "target":
            # No more is lost than is there.
            lost = lost + np.minimum(unit.tiny * here.magnitudes.multiplied, coefficient * here.weight * terms)
        # A number of elements is exact, a sum of weights is not.
        return np.asarray((off_sum if by_weight else off) * coefficient * here.weight * terms + lost)

    def of_third(name: str) -> Bound:
        if thirds[name].shape == shape:
            return Bound(shape, lambda first, last: slope(first, last, "third"))

        def shared(first: int, last: int) -> np.ndarray:
            here = at(first, last)
            terms = here.cotangent / divisor * here.magnitudes.third
            return np.asarray(slope(first, last, "third") + unit.sum(elements.size / max(thirds[name].size, 1)) * terms)

        axes = _shared_axes(thirds[name].shape, shape)
        return whole(np.add.reduce(np.asarray(Bound(shape, shared)), axes), case.inputs[name].shape)

    def of_weight(first: int, last: int) -> np.ndarray:
        here = at(first, last)
        terms = here.magnitudes.value + mean
        return np.asarray(off_sum * here.cotangent / divisor * terms + unit.tiny * (1.0 + here.cotangent + terms))

    return {
        "loss": loss,
        f"grad.{names[0]}": Bound(shape, lambda first, last: slope(first, last, "first")),
        f"grad.{names[1]}": Bound(shape, lambda first, last: slope(first, last, "target")),
        **{f"grad.{name}": of_third(name) for name in thirds},
        "grad.weight": Bound(shape, of_weight),
        "intermediate.losses": Bound(
            shape, lambda first, last: (off + unit.inside) * value(first, last) + 2 * unit.tiny
        ),
        "intermediate.probabilities": Bound(
            shape, lambda first, last: (off + unit.inside) / (1 + np.exp(-at(first, last).input)) + unit.tiny
        ),
    }
