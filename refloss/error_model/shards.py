"""How far what ranks compute may be off that have a part of the classes each.

Loss and gradients are those of rows of logits (softmax): the cut costs one addition among many. Of what is sent, with
logits y that are off by d, distances a_j = m − y_j to the common maximum, and the roundoffs of softmax,

    |δm|      ≤ d of the largest
    |δs_r|    ≤ Σ e^(−a_j)·(e^((u + v)·a_j + 4·v + u + s(V_r) + d_j + |δm|) − 1) + V_r·tiny
    |δS_r|    ≤ s(V_r)·Σ |y_j| + Σ d_j
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.error_model.bound import Bound, part, without_nan
from refloss.error_model.softmax import OPTIONS, Rows, of_chain, row_bounds
from refloss.kernels.shards.run import smoothing_of_all
from refloss.roundoff import real

if TYPE_CHECKING:
    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.roundoff import Roundoff

_OF_ROWS = ("loss", "component.cross_entropy", "component.z_loss", "intermediate.lse", "intermediate.nll")


def vocab_parallel_cross_entropy(case: Case, result: LossResult, unit: Roundoff) -> dict[str, Bound]:
    """Classes on the last axis, and cut; what is sent is looked at when somebody asks."""
    logits, options = case.inputs["shards"], dict(case.parameters)
    chain, of_lse = of_chain(logits, options, unit)
    formula = options.get("label_smoothing_formula", "torch")
    options["label_smoothing"] = smoothing_of_all(options.get("label_smoothing", 0.0), formula, logits.shape[-1])
    values, error = chain.pop("logits", logits), chain.get("error", np.zeros(()))
    chosen = {name: value for name, value in options.items() if name in OPTIONS}
    given = Rows(values, case.inputs["target"], case.grad_output, added=of_lse, **chosen, **chain)
    limits = row_bounds(given, unit)
    sent = _Sent(case, values, error, unit)
    return {
        **{name: limits[name] for name in _OF_ROWS if name in limits},
        "grad.shards": limits["grad.logits"],
        **{
            f"intermediate.{name}": Bound(np.shape(value), functools.partial(sent.part, name))
            for name, value in result.intermediates.items()
            if name not in ("lse", "nll")
        },
    }


class _Sent:
    """The bounds of what ranks send."""

    def __init__(self, case: Case, values: np.ndarray, error: np.ndarray, unit: Roundoff) -> None:
        self._case, self._values, self._error, self._unit = case, values, error, unit

    def part(self, name: str, first: int, last: int) -> np.ndarray:
        """Elements of one of them."""
        return part(self._limits[name], first, last)

    @functools.cached_property
    @np.errstate(all="ignore")
    def _limits(self) -> dict[str, np.ndarray]:
        y = real(self._values).reshape(-1, self._values.shape[-1])
        d = np.broadcast_to(real(self._error), self._values.shape).reshape(y.shape)
        widths = self._case.inputs.get("widths", np.array([y.shape[1]])).astype(np.int64)
        ends = np.cumsum(widths).tolist()
        ranks = [slice(*each) for each in zip([0, *ends], ends, strict=False)]
        of_top, shift = self._of_maximum(y, d)
        labels = self._case.inputs["target"].reshape(-1, 1)
        of_label = np.where(labels == np.arange(y.shape[1]), d, 0.0)
        whole = self._of_sum(y, d, slice(None), shift)
        found: dict[str, Any] = {
            "common_maximum": of_top,
            "total": whole,
            "maximum": [self._of_maximum(y[:, own], d[:, own])[0] for own in ranks],
            "sum_exp": [self._of_sum(y, d, own, shift) for own in ranks],
            "label_logit": [of_label[:, own].sum(axis=1) for own in ranks],
            "logit_sum": [self._unit.sum(own.stop - own.start) * _size(y[:, own]) + d[:, own].sum(1) for own in ranks],
        }
        return {name: without_nan(np.array(value)) for name, value in found.items()}

    def _of_maximum(self, y: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """|δm|, [N]; and m with that, [N, 1] each."""
        if not y.shape[1]:
            return np.zeros(len(y)), np.zeros((2, len(y), 1))
        top = y.argmax(axis=1)[:, None]
        error = np.take_along_axis(d, top, 1)
        return error[:, 0], np.array([np.take_along_axis(y, top, 1), error])

    def _of_sum(self, y: np.ndarray, d: np.ndarray, own: slice, shift: np.ndarray) -> np.ndarray:
        unit, (maximum, of_top) = self._unit, shift
        distance = maximum - y[:, own]
        terms = np.exp(-distance)
        distance = np.where(np.isfinite(distance), distance, 0.0)
        width = distance.shape[1]
        relative = (unit.between + unit.inside) * distance + 4 * unit.inside + unit.between + unit.sum(width)
        # Where it is above 1 nothing is left of a term, in any type.
        each = terms * np.expm1(np.minimum(relative + d[:, own] + of_top, 1.0))
        return np.asarray(each.sum(axis=1) + width * unit.tiny)


def _size(y: np.ndarray) -> np.ndarray:
    """Σ |y| of what is finite."""
    return np.asarray(np.where(np.isfinite(y), np.abs(y), 0.0).sum(axis=1))
