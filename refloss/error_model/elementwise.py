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
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from refloss.error_model.bound import Aligned, Bound, summed, total, whole
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


def bounds(specification: Elementwise, case: Case, unit: Roundoff) -> dict[str, Bound]:
    """Those of a loss whose terms its specification has."""
    terms = _Terms(specification, case, unit)
    slopes = zip(specification.required, ("first", "target", "third"), strict=False)
    return {
        "loss": terms.of_loss(),
        **{f"grad.{name}": terms.of_gradient(name, which) for name, which in slopes},
        "grad.weight": Bound(terms.shape, terms.slope_of_weight),
        "intermediate.losses": Bound(terms.shape, terms.own_value),
        "intermediate.probabilities": Bound(terms.shape, terms.probability),
    }


class _Terms:
    """What the bounds of a case are made of, which are functions of the first and the last of some elements."""

    def __init__(self, specification: Elementwise, case: Case, unit: Roundoff) -> None:
        self._names, self._specification, self._case, self._unit = specification.required, specification, case, unit
        first = np.shape(case.inputs[self._names[0]])
        own = {
            name: _with_last_axis(case.inputs[name], first) if k > 1 else case.inputs[name]
            for k, name in enumerate(self._names)
        }
        self.shape = specification.elements(case.inputs)
        self._own = {name: (1,) * (len(self.shape) - array.ndim) + array.shape for name, array in own.items()}
        self._elements = Aligned(self.shape, case.inputs | own | {"grad_output": case.grad_output})
        self._at = functools.lru_cache(maxsize=1)(self._part)
        self._weighted = "weight" in case.inputs
        self._reduction = case.parameters.get("reduction", "mean")
        self._by_weight = self._weighted and specification.mean == "weights"
        self._divisor = np.float64(self._divided_by())
        self._off = STEPS * unit.between
        self._off_sum = self._off + unit.sum(self._elements.size)
        # Relative to what a weight's gradient is.
        relative = self._by_weight and self._reduction == "mean"
        self._mean = self._total() if relative else np.float64(0.0)

    def _divided_by(self) -> float:
        count: float = self._elements.size
        if self._by_weight and self._reduction == "mean":
            count = total(self._elements.size, lambda first, last: np.abs(self._elements.part(first, last)["weight"]))
        return {"mean": count, "batchmean": self.shape[0] if self.shape else 1}.get(self._reduction, 1.0)

    def _part(self, first: int, last: int) -> _Part:
        own = self._elements.part(first, last)
        x, t = own[self._names[0]], own[self._names[1]]
        magnitudes = self._specification.magnitudes(x, t, self._case._replace(inputs=own), self._unit)
        weight = np.abs(own["weight"]) if self._weighted else 1.0
        return _Part(x, weight, np.abs(own["grad_output"]), magnitudes)

    def _value(self, first: int, last: int) -> np.ndarray:
        here = self._at(first, last)
        return np.asarray(here.weight * here.magnitudes.value)

    def _total(self) -> np.float64:
        return np.float64(total(self._elements.size, self._value)) / self._divisor

    def of_loss(self) -> Bound:
        """That of the sum, or of every element."""
        tiny = self._unit.tiny
        if self._reduction == "none":
            return Bound(self.shape, lambda first, last: self._off_sum * self._value(first, last) + 2 * tiny)
        lost = tiny * (1.0 + 2.0 * self._elements.size / self._divisor)
        return whole(self._off_sum * self._total(), lost=lost)

    def own_value(self, first: int, last: int) -> np.ndarray:
        """That of a loss of an element beside the sum."""
        off = self._off + self._unit.inside
        return np.asarray(off * self._value(first, last) + 2 * self._unit.tiny)

    def probability(self, first: int, last: int) -> np.ndarray:
        """That of what a logit stands for."""
        return np.asarray(
            (self._off + self._unit.inside) / (1 + np.exp(-self._at(first, last).input)) + self._unit.tiny
        )

    def _slope(self, first: int, last: int, of: str) -> np.ndarray:
        here, tiny, divisor = self._at(first, last), self._unit.tiny, self._divisor
        terms, coefficient = getattr(here.magnitudes, of), here.cotangent / divisor
        lost = tiny * (1.0 + here.cotangent * (1.0 + here.weight / divisor) + (1.0 + here.weight) * terms)
        if of == "target":
            # No more is lost than is there.
            lost = lost + np.minimum(tiny * here.magnitudes.multiplied, coefficient * here.weight * terms)
        # A number of elements is exact, a sum of weights is not.
        off = self._off_sum if self._by_weight else self._off
        return np.asarray(off * coefficient * here.weight * terms + lost)

    def of_gradient(self, name: str, of: str) -> Bound:
        """That of an input whose slopes have terms; of a number that elements share, the sum of theirs."""
        own = self._own[name]
        if own == self.shape:
            return Bound(self.shape, lambda first, last: self._slope(first, last, of))
        off = self._unit.sum(self._elements.size / max(math.prod(own), 1))

        def each(first: int, last: int) -> np.ndarray:
            here = self._at(first, last)
            terms = here.cotangent / self._divisor * getattr(here.magnitudes, of)
            return np.asarray(self._slope(first, last, of) + off * terms)

        return summed(Bound(self.shape, each), own, self._case.inputs[name].shape)

    def slope_of_weight(self, first: int, last: int) -> np.ndarray:
        """That of a weight's gradient."""
        here = self._at(first, last)
        terms, tiny = here.magnitudes.value + self._mean, self._unit.tiny
        return np.asarray(
            self._off_sum * here.cotangent / self._divisor * terms + tiny * (1.0 + here.cotangent + terms)
        )


def _with_last_axis(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array that elements may share the numbers of lacks the last axis, or has size 1 there or elsewhere."""
    if array.ndim == 0:
        return array.reshape((1,) * len(shape))
    return array[..., None] if array.ndim < len(shape) else array
