"""Rows of logits, of any function that has some, as a mistaken step of a softmax or of a mean sees them.

A row x with masses q, Q = Σ q, and a cotangent c over a normaliser has the loss −Σ q_j·log p_j and the gradient
c·(Q·p − q). One view serves cross_entropy and nll, the heads of tokens and sequences, both sides of
question_answering, and the pixels of semantic_segmentation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss.error_model.chain import chained, z_factor
from refloss.error_model.resampling import adjoint, resampled
from refloss.kernels.shards.run import smoothing_of_all
from refloss.roundoff import real
from refloss.testing.mistakes import alterations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refloss.cases.source import Case
    from refloss.result import LossResult
    from refloss.specification import Argument


def compute_kind(dtype: Any) -> Any:
    """The type that inputs of a type are computed in."""
    return np.float64 if dtype == np.float64 else np.float32


@dataclass(frozen=True, eq=False)
class View:
    """Rows in float64, classes last.

    labels are those asked for, where they are classes, and counted the rows that count; share is what the loss of
    these rows is multiplied by, and back makes the tensor of the gradients of rows.
    """

    tensor: str
    logits: np.ndarray  # [R, C]
    target: np.ndarray  # [R, C], t; 0 in ignored rows
    labels: np.ndarray | None  # [R]
    counted: np.ndarray  # [R], bool
    weight: np.ndarray  # [C]
    smoothing: float
    normaliser: float
    cotangent: np.ndarray  # [R]
    reduction: str
    of_items: bool
    row_shape: tuple[int, ...]
    back: Callable[[np.ndarray], np.ndarray]
    there: Callable[[np.ndarray], np.ndarray]  # the other way, where nothing is resampled
    axis: int  # of the classes in the tensor
    given: np.ndarray  # the tensor
    without_label: np.ndarray  # [R], whether no label is for a row: the last ones, where labels are shifted
    poisoned: np.ndarray  # [R], whether a row that is ignored holds what is not finite
    share: float = 1.0
    is_log: bool = False  # of log-probabilities: without a softmax
    z_loss: float = 0.0  # the factor of lse², which every row that counts has beside
    slope: np.ndarray | float = 1.0  # what the tensor's gradients are multiplied by where a chain made its logits
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def has_labels(self) -> bool:
        """Whether there are classes, instead of distributions."""
        return self.labels is not None

    @property
    def kind(self) -> Any:
        """The type that is computed in."""
        return compute_kind(self.inputs[self.tensor.removeprefix("grad.")].dtype)

    @functools.cached_property
    def mass(self) -> np.ndarray:
        """q, [R, C]."""
        classes = max(self.logits.shape[-1], 1)
        spread = (1 - self.smoothing) * self.target + self.smoothing / classes
        return np.asarray(self.weight * spread * self.counted[:, None])

    @functools.cached_property
    def coefficient(self) -> np.ndarray:
        """The cotangent over the normaliser, [R, 1]."""
        with np.errstate(all="ignore"):
            return np.asarray(self.share * self.cotangent / self.normaliser)[:, None]

    @functools.cached_property
    def maximum(self) -> np.ndarray:
        """[R, 1]."""
        return np.asarray(self.logits.max(axis=-1, keepdims=True, initial=-np.inf))

    @functools.cached_property
    def terms(self) -> np.ndarray:
        """e^(x − max), [R, C]."""
        return np.asarray(np.exp(self.logits - self.maximum))

    @functools.cached_property
    def pushed(self) -> np.ndarray:
        """Q, [R]."""
        return np.asarray(self.mass.sum(axis=-1))

    @functools.cached_property
    def least(self) -> float:
        """The smallest probability that a loss is made of."""
        asked = self.p[self.mass != 0]
        return float(asked.min(initial=1.0))

    @functools.cached_property
    def lse(self) -> np.ndarray:
        """[R, 1]."""
        return np.asarray(self.maximum + np.log(self.terms.sum(axis=-1, keepdims=True)))

    @functools.cached_property
    def log_p(self) -> np.ndarray:
        """[R, C]."""
        return self.logits if self.is_log else self.logits - self.lse

    @functools.cached_property
    def p(self) -> np.ndarray:
        """[R, C]."""
        return np.asarray(np.exp(self.log_p))

    @functools.cached_property
    def losses(self) -> np.ndarray:
        """Of each row."""
        return self.losses_of(self.log_p)

    @functools.cached_property
    def slopes(self) -> np.ndarray:
        """Q·p − q of each row."""
        return self.slopes_of(self.p)

    def losses_of(self, log_p: np.ndarray, mass: np.ndarray | None = None) -> np.ndarray:
        """−Σ q·log p with other logarithms, or masses."""
        mass = self.mass if mass is None else mass
        terms = mass * log_p
        return np.asarray(-(np.where(mass == 0, 0.0, terms) if self.has_labels else terms).sum(axis=-1))

    def slopes_of(self, p: np.ndarray, mass: np.ndarray | None = None) -> np.ndarray:
        """Q·p − q with other probabilities, or masses."""
        mass = self.mass if mass is None else mass
        if self.is_log:
            return -mass
        pushed = mass.sum(axis=-1, keepdims=True)
        return np.asarray(np.where(pushed == 0, 0.0, pushed * p) - mass)


def views(case: Case, result: LossResult) -> list[View]:
    """The rows of a case, one view for each tensor of logits; none where it has no such rows."""
    specification = alterations.specification_of(case)
    names = alterations.logits(case) or [
        name
        for name, each in specification.arguments.items()
        if each.role == "log-probabilities" and each.class_axis is not None
    ]
    if not names or specification.mean != "labels":
        return []
    if specification.has_classes is not None and not specification.has_classes(case):
        return []
    return [_view(case, result, name, specification.arguments[name]) for name in names]


def _view(case: Case, result: LossResult, name: str, argument: Argument) -> View:
    parameters = case.parameters
    values, slope, _ = chained(case.inputs[name], parameters)
    target, ignored = _target(case, result, name)
    axis = argument.class_axis or 0
    axis = min(axis, values.ndim - 1) if axis >= 0 else values.ndim - 1
    pixels = resampled(values, target.shape[-2:]) if argument.resampled else values
    moved = np.moveaxis(pixels, axis, -1)
    rows = moved.reshape(-1, _classes(case, moved))
    is_labels = target.dtype.kind in "iub"
    labels = target.reshape(-1).astype(np.int64) if is_labels else None
    if labels is None:
        masses = np.moveaxis(real(target), axis, -1).reshape(rows.shape)
        counted = np.ones(len(rows), bool)
    else:
        counted = labels != ignored
        masses = ((labels[:, None] == np.arange(rows.shape[-1])) & counted[:, None]).astype(np.float64)
    weight = np.ones(rows.shape[-1]) if "weight" not in case.inputs else real(case.inputs["weight"])
    items = parameters.get("num_items_in_batch")
    reduction = parameters.get("reduction", "mean")
    divisor = 1.0 if reduction != "mean" else float((masses * weight).sum()) if is_labels else float(len(rows))

    def back(gradient: np.ndarray) -> np.ndarray:
        tensor = gradient.reshape(moved.shape)
        tensor = tensor if axis == tensor.ndim - 1 else np.moveaxis(tensor, -1, axis)
        return adjoint(tensor, values.shape[-2:]) if argument.resampled else tensor

    # What an ignored row holds concerns no other.
    sound = counted[:, None] | (rows < np.inf).all(axis=-1, keepdims=True)
    return View(
        tensor=f"grad.{name}",
        logits=np.where(sound, rows, 0.0),
        target=masses,
        labels=labels,
        counted=counted,
        weight=weight,
        smoothing=smoothing_of_all(
            float(parameters.get("label_smoothing", 0.0)),
            parameters.get("label_smoothing_formula", "torch"),
            rows.shape[-1],
        ),
        normaliser=divisor if items is None else float(items),
        cotangent=_cotangents(case, target.shape if is_labels else moved.shape[:-1]),
        reduction=reduction,
        of_items=items is not None,
        row_shape=target.shape if is_labels else moved.shape[:-1],
        back=back,
        there=lambda tensor: np.moveaxis(tensor, axis, -1).reshape(rows.shape),
        axis=axis,
        given=values,
        without_label=_without_label(case, target) if is_labels else ~counted,
        poisoned=~sound[:, 0],
        share=_share(case, name),
        is_log=argument.role == "log-probabilities",
        z_loss=z_factor(parameters),
        slope=slope,
        parameters=parameters,
        inputs=case.inputs,
    )


def _share(case: Case, name: str) -> float:
    """What the loss of some rows is multiplied by, beside that of others."""
    if name == "auxiliary_logits":
        return float(case.parameters.get("auxiliary_loss_weight", 0.4))
    return 0.5 if case.function == "question_answering" else 1.0


def _cotangents(case: Case, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(real(case.grad_output), shape).reshape(-1)


def _without_label(case: Case, target: np.ndarray) -> np.ndarray:
    shifted = np.zeros(target.shape, bool)
    shift = max(each.shift for each in alterations.specification_of(case).arguments.values())
    if shift and "shift_labels" not in case.inputs:
        shifted[..., target.shape[-1] - shift :] = True
    return shifted.reshape(-1)


def _classes(case: Case, moved: np.ndarray) -> int:
    given = case.parameters.get("vocab_size") or case.parameters.get("num_labels")
    return int(given or moved.shape[-1])


def _target(case: Case, result: LossResult, name: str) -> tuple[np.ndarray, Any]:
    """Labels as they are used, and which of them is ignored; or a distribution."""
    if case.function == "question_answering":
        side = name.partition("_")[0]
        return np.asarray(result.intermediates[f"{side}_positions"]), case.inputs[name].shape[1]
    targets = alterations.specification_of(case).named("labels", "classes")
    target = alterations.specification_of(case).arguments[targets[0]]
    labels = result.intermediates["shift_labels"] if target.shift else case.inputs[targets[0]]
    return np.asarray(labels), case.parameters.get("ignore_index", target.ignored)
