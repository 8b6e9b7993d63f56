"""Losses of rows of classes: softmax with labels or distributions, and the heads that are made of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.elements import BceWithLogits, Mse
from tests.gauntlet.kernels import Kernel, with_steps
from tests.gauntlet.resampling import bilinear

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Answer
    from tests.gauntlet.resampling import Weights


@dataclasses.dataclass
class Rows:
    """Rows of logits, and what each is compared with."""

    x: np.ndarray  # [N, C]
    shape: tuple[int, ...]  # the axes that became N
    cotangent: np.ndarray  # a number, or [N]
    labels: np.ndarray | None = None  # [N]
    targets: np.ndarray | None = None  # [N, C], instead of labels
    weight: np.ndarray | None = None  # [C]
    ignore_index: int = -100
    smoothing: float = 0.0
    reduction: str = "mean"
    items: float | None = None  # what a sum is divided by instead of the mean's count
    factor: float = 1.0  # what gradients are multiplied by where a loss is part of another
    scale: float = 1.0  # what logits go through
    cap: float | None = None
    temperature: float = 1.0
    z_loss: float = 0.0  # the factor of lse²

    @property
    def of_classes(self) -> np.ndarray:
        """The weights of classes."""
        return np.ones(self.x.shape[1], self.x.dtype) if self.weight is None else self.weight


class RowLoss(Kernel):
    """Losses of rows, added up or averaged."""

    # Which rows count, and what a sum is divided by.

    def counts(self, rows: Rows) -> np.ndarray:
        """Which rows have a label that is not ignored."""
        if rows.labels is None:
            return np.ones(len(rows.x), bool)
        return np.asarray(rows.labels != self.ignored(rows))

    def ignored(self, rows: Rows) -> int:
        """The label of rows that do not count."""
        return rows.ignore_index

    def has_gradient(self, rows: Rows) -> np.ndarray:
        """Which rows have a gradient that is not 0."""
        return self.counts(rows)

    def picked(self, rows: Rows) -> np.ndarray:
        """The label of each row as an index; what is no class is the first one."""
        assert rows.labels is not None
        return np.where((rows.labels >= 0) & (rows.labels < rows.x.shape[1]), rows.labels, 0)

    def row_weights(self, rows: Rows, counts: np.ndarray) -> np.ndarray:
        """What each row weighs in the mean."""
        if rows.labels is None:
            return np.ones(len(rows.x), rows.x.dtype)
        return np.where(counts, rows.of_classes[self.picked(rows)], 0)

    def divisor(self, rows: Rows, counts: np.ndarray) -> Any:
        """What the loss of a row is divided by: a number, or one for each row."""
        if rows.items is not None:
            return rows.x.dtype.type(rows.items)
        if rows.reduction != "mean":
            return rows.x.dtype.type(1)
        return self.sum(self.row_weights(rows, counts))

    def gradient_divisor(self, rows: Rows, counts: np.ndarray) -> Any:
        """The same of its gradient."""
        return self.divisor(rows, counts)

    def reduced(self, rows: Rows, losses: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """One number, or the losses as they lie in the batch."""
        if rows.reduction == "none":
            return losses.reshape(rows.shape)
        divisor = self.divisor(rows, counts)
        return np.asarray(self.sum(losses / divisor) if np.ndim(divisor) else self.sum(losses) / divisor)

    def coefficients(self, rows: Rows, counts: np.ndarray) -> np.ndarray:
        """What the derivative of each row's loss is multiplied by, [N, 1]."""
        factor = rows.cotangent * rows.x.dtype.type(rows.factor) / self.gradient_divisor(rows, counts)
        return np.broadcast_to(factor, len(rows.x))[:, None]


class CrossEntropy(RowLoss):
    """Softmax cross-entropy, and all functions that are made of it."""

    components: dict[str, np.ndarray]  # of the rows that were solved last

    # What logits go through before.

    def scaled(self, rows: Rows, x: np.ndarray) -> np.ndarray:
        """x·scale."""
        return np.asarray(x * x.dtype.type(rows.scale))

    def tanh(self, rows: Rows, x: np.ndarray) -> np.ndarray:
        """tanh of x over the cap."""
        return np.asarray(np.tanh(x / x.dtype.type(rows.cap)))

    def chain(self, rows: Rows, x: np.ndarray) -> np.ndarray:
        """c·tanh(x·scale/c)/temperature."""
        x = self.scaled(rows, x)
        if rows.cap is not None:
            x = x.dtype.type(rows.cap) * self.tanh(rows, x)
        return np.asarray(x / x.dtype.type(rows.temperature))

    def of_cap(self, rows: Rows, x: np.ndarray) -> Any:
        """1 − tanh²."""
        return x.dtype.type(1) if rows.cap is None else 1 - self.tanh(rows, self.scaled(rows, x)) ** 2

    def of_temperature(self, rows: Rows, x: np.ndarray) -> Any:
        """What the temperature divides gradients by."""
        return x.dtype.type(rows.temperature)

    def chain_slope(self, rows: Rows, x: np.ndarray) -> Any:
        """∂y/∂x."""
        return x.dtype.type(rows.scale) * self.of_cap(rows, x) / self.of_temperature(rows, x)

    # What is added for each row.

    def squared(self, rows: Rows, lse: np.ndarray) -> np.ndarray:
        """ζ·lse², [N]."""
        return np.asarray(lse.dtype.type(rows.z_loss) * lse[:, 0] ** 2)

    def squared_slope(self, rows: Rows, lse: np.ndarray) -> np.ndarray:
        """2ζ·lse, [N, 1]."""
        return np.asarray(lse.dtype.type(2 * rows.z_loss) * lse)

    # The softmax of a row.

    def maximum(self, x: np.ndarray) -> np.ndarray:
        """What is subtracted, so that no exponential overflows: [N, 1]."""
        return np.asarray(x.max(axis=1, keepdims=True, initial=-np.inf))

    def below(self, x: np.ndarray, maximum: np.ndarray) -> np.ndarray:
        """How far each class is below it."""
        return np.asarray(x - maximum)

    def terms(self, below: np.ndarray) -> np.ndarray:
        """e^x of what is left, at most 1."""
        return np.exp(below)

    def total(self, x: np.ndarray, maximum: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """What they add up to: [N, 1]."""
        return self.sum(terms, axis=1)[:, None]

    def log_probabilities(self, below: np.ndarray, terms: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Two terms of one sign: a sure row loses few digits, an improbable class none."""
        return np.asarray(below - np.log(total))

    def probabilities(self, terms: np.ndarray, total: np.ndarray) -> np.ndarray:
        """For the gradient."""
        return np.asarray(terms / total)

    # What the row is compared with.

    def smoothed(self, rows: Rows, hard: np.ndarray) -> np.ndarray:
        """(1 − ε)·t + ε/C of every class."""
        if not rows.smoothing:
            return hard
        kept = rows.x.dtype.type(1 - rows.smoothing)
        return kept * hard + rows.x.dtype.type(rows.smoothing / rows.x.shape[1])

    def hard(self, rows: Rows) -> np.ndarray:
        """The distribution that a row is compared with before it is smoothed: 1 at a label."""
        if rows.targets is not None:
            return rows.targets
        hard = np.zeros_like(rows.x)
        if hard.size:
            np.put_along_axis(hard, self.picked(rows)[:, None], self.counts(rows)[:, None], axis=1)
        return hard

    def masses(self, rows: Rows) -> np.ndarray:
        """q: what each class weighs in the loss, [N, C]."""
        return np.asarray(self.smoothed(rows, self.hard(rows)) * rows.of_classes)

    def likelihood(self, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
        """−Σ q·log p. A label is picked: classes of no probability have no part in it."""
        if rows.targets is None and not rows.smoothing:
            picked = self.picked(rows)[:, None]
            return np.asarray(-np.take_along_axis(q, picked, 1) * np.take_along_axis(log_p, picked, 1))[:, 0]
        return self.sum(q * -log_p, axis=1)

    def mass(self, rows: Rows, q: np.ndarray) -> np.ndarray:
        """Q, the sum of q: [N, 1]."""
        return self.sum(q, axis=1)[:, None]

    def derivative(self, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Q·p − q."""
        return np.asarray(self.mass(rows, q) * p - q)

    def included(self, rows: Rows) -> np.ndarray:
        """Which rows are part of the loss: those that count."""
        return self.counts(rows)

    def solve(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The loss, and its derivatives for logits and targets."""
        counts, included, has_gradient = self.counts(rows), self.included(rows), self.has_gradient(rows)
        given = np.where((included | has_gradient)[:, None], rows.x, 0)  # ignored rows may hold anything
        x = self.chain(rows, given)
        maximum = self.maximum(x)
        below = self.below(x, maximum)
        terms = self.terms(below)
        total = self.total(x, maximum, terms)
        log_p, p = self.log_probabilities(below, terms, total), self.probabilities(terms, total)
        q, coefficients = self.masses(rows), self.coefficients(rows, counts)
        losses = np.where(included, self.likelihood(rows, q, log_p), 0)
        derivative = self.derivative(rows, p, q)
        self.components = {}
        if rows.z_loss:
            lse = maximum + np.log(total)
            squares = np.where(counts, self.squared(rows, lse), 0)
            parts = {"cross_entropy": losses, "z_loss": squares}
            self.components = {name: self.reduced(rows, part, counts) for name, part in parts.items()}
            losses = losses + squares
            derivative = derivative + np.where(counts[:, None], self.squared_slope(rows, lse) * p, 0)
        gradient = np.where(has_gradient[:, None], coefficients * derivative * self.chain_slope(rows, given), 0)
        of_targets = coefficients * rows.x.dtype.type(1 - rows.smoothing) * rows.of_classes * -log_p
        return self.reduced(rows, losses, counts), gradient, of_targets

    # The functions.

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Each function has another way to its rows."""
        functions = {
            "cross_entropy": self.cross_entropy,
            "causal_lm": self.tokens,
            "masked_lm": self.tokens,
            "token_classification": self.tokens,
            "sequence_classification": self.sequences,
            "question_answering": self.answers,
            "semantic_segmentation": self.pixels,
        }
        return functions[self.function](inputs, parameters, cotangent)

    def cross_entropy(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Classes on axis 1, or the only one."""
        logits, target = inputs["logits"], inputs["target"]
        axis = min(1, logits.ndim - 1)
        soft = target.shape == logits.shape and target.dtype.kind not in "iu"
        x = by_rows(self.widened(logits), axis)
        weight = inputs.get("weight")
        rows = Rows(
            x,
            (*logits.shape[:axis], *logits.shape[axis + 1 :]),
            self.upstream(cotangent, x).reshape(-1 if np.ndim(cotangent) else ()),
            targets=by_rows(target.astype(x.dtype), axis) if soft else None,
            labels=None if soft else target.reshape(-1).astype(np.int64),
            weight=None if weight is None else weight.astype(x.dtype),
            ignore_index=parameters.get("ignore_index", -100),
            smoothing=parameters.get("label_smoothing", 0.0),
            reduction=parameters.get("reduction", "mean"),
            **of_chain(parameters),
        )
        loss, gradient, of_targets = self.solve(rows)
        grads = {"logits": as_it_was(gradient, logits, axis)}
        grads |= {"target": as_it_was(of_targets, target, axis)} if soft else {}
        return (loss, grads, self.components) if self.components else (loss, grads)

    def shifted(self, labels: np.ndarray, ignored: int) -> np.ndarray:
        """What each position of a causal model predicts: the next token."""
        moved = np.full_like(labels, ignored)
        moved[..., :-1] = labels[..., 1:]
        return moved

    def items(self, inputs: dict[str, Any], parameters: dict[str, Any]) -> Any:
        """What a sum is divided by instead of the mean's count; None for a mean."""
        return parameters.get("num_items_in_batch")

    def tokens(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """A label for each position."""
        logits, labels = inputs["logits"], inputs["labels"].astype(np.int64)
        ignored = parameters.get("ignore_index", -100)
        if self.function == "causal_lm":
            given = inputs.get("shift_labels")
            labels = self.shifted(labels, ignored) if given is None else given.astype(np.int64)
        size = parameters.get("vocab_size") or parameters.get("num_labels") or logits.shape[-1]
        options = parameters | {"num_items_in_batch": self.items(inputs, parameters)}
        loss, gradient = self.labelled(logits.reshape(-1, size), labels, options, cotangent)
        grads = {"logits": gradient.reshape(logits.shape)}
        return (loss, grads, self.components) if self.components else (loss, grads)

    def labelled(
        self, logits: np.ndarray, labels: np.ndarray, parameters: dict[str, Any], cotangent: Any, factor: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mean over rows of logits with a label each, or the sum over a number of items."""
        x = self.widened(logits)
        rows = Rows(
            x,
            labels.shape,
            self.upstream(cotangent, x),
            labels=labels.reshape(-1).astype(np.int64),
            ignore_index=parameters.get("ignore_index", -100),
            items=parameters.get("num_items_in_batch"),
            factor=factor,
            **of_chain(parameters),
        )
        loss, gradient, _ = self.solve(rows)
        return loss, gradient.astype(logits.dtype)

    def sequences(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """One label for each sequence, or several, or values."""
        logits, labels, kind = inputs["pooled_logits"], inputs["labels"], parameters.get("problem_type")
        if kind is None and parameters.get("num_labels", logits.shape[-1]) == 1:
            kind = "regression"
        if kind is None:
            one = labels.dtype in (np.int64, np.int32)
            kind = "single_label_classification" if one else "multi_label_classification"
        if kind == "single_label_classification":
            loss, gradient = self.labelled(logits, labels, parameters, cotangent)
            return loss, {"pooled_logits": gradient}
        name, loss_of = ("input", Mse) if kind == "regression" else ("logits", BceWithLogits)
        other = with_steps(loss_of, upstream=type(self).upstream, sum=type(self).sum)("")
        values = labels if labels.dtype.kind not in "iub" else labels.astype(np.float64)
        loss, grads = other({name: logits, "target": values.reshape(logits.shape)}, {}, cotangent)
        return loss, {"pooled_logits": grads[name]}

    def answers(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Half of two cross-entropies over positions, which are held within the sequence; beyond it is ignored."""
        losses, grads = [], {}
        for side in ("start", "end"):
            logits = inputs[f"{side}_logits"]
            positions = np.clip(inputs[f"{side}_positions"].astype(np.int64), 0, logits.shape[1]).reshape(-1)
            options = parameters | {"ignore_index": logits.shape[1]}
            loss, grads[f"{side}_logits"] = self.labelled(logits, positions, options, cotangent, 0.5)
            losses.append(loss)
        return (losses[0] + losses[1]) / 2, grads

    def weights(self, size: int, resized: int) -> Weights:
        """Between which elements each output of a resampled axis lies, and where."""
        return bilinear(size, resized)

    def auxiliary_weight(self, parameters: dict[str, Any]) -> float:
        """What the loss of the auxiliary logits is multiplied by."""
        return float(parameters.get("auxiliary_loss_weight", 0.4))

    def pixels(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Planes are resampled to the size of the labels, and gradients go back by the adjoint."""
        labels, options = inputs["labels"], {"ignore_index": 255} | parameters
        loss: Any = 0
        grads = {}
        for name, factor in (("logits", 1.0), ("auxiliary_logits", self.auxiliary_weight(parameters))):
            if name not in inputs:
                continue
            logits = inputs[name]
            x = self.widened(logits)
            down, across = (self.weights(*sizes) for sizes in zip(x.shape[2:], labels.shape[1:], strict=True))
            planes = across.resampled(down.resampled(x, 2), 3)
            of_part, gradient = self.labelled(by_rows(planes, 1), labels, options, cotangent, factor)
            loss = loss + x.dtype.type(factor) * of_part
            whole = np.moveaxis(gradient.reshape(*labels.shape, x.shape[1]), -1, 1)
            grads[name] = down.adjoint(across.adjoint(whole, 3), 2).astype(logits.dtype)
        return loss, grads


class Nll(RowLoss):
    """−w·x of the label, where x holds log-probabilities already."""

    def answer(self, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Answer:
        """Classes on axis 1, or the only one."""
        given, target = inputs["input"], inputs["target"]
        axis = min(1, given.ndim - 1)
        x = by_rows(self.widened(given), axis)
        weight = inputs.get("weight")
        rows = Rows(
            x,
            (*given.shape[:axis], *given.shape[axis + 1 :]),
            self.upstream(cotangent, x).reshape(-1 if np.ndim(cotangent) else ()),
            labels=target.reshape(-1).astype(np.int64),
            weight=None if weight is None else weight.astype(x.dtype),
            ignore_index=parameters.get("ignore_index", -100),
            reduction=parameters.get("reduction", "mean"),
        )
        counts, picked = self.counts(rows), self.picked(rows)
        weights = rows.of_classes[picked]
        losses = np.where(counts, -weights * np.take_along_axis(x, picked[:, None], 1)[:, 0], 0)
        gradient = np.zeros_like(x)
        of_label = np.where(self.has_gradient(rows), -self.coefficients(rows, counts)[:, 0] * weights, 0)
        if gradient.size:
            np.put_along_axis(gradient, picked[:, None], of_label[:, None], axis=1)
        return self.reduced(rows, losses, counts), {"input": as_it_was(gradient, given, axis)}


def of_chain(parameters: dict[str, Any]) -> dict[str, Any]:
    """The options of a chain by the names of Rows."""
    names = {"logit_scale": "scale", "softcap": "cap", "temperature": "temperature", "z_loss": "z_loss"}
    return {names[name]: value for name, value in parameters.items() if name in names}


def by_rows(values: np.ndarray, axis: int) -> np.ndarray:
    """The classes of an axis as rows [N, C], one after the other in memory."""
    return np.ascontiguousarray(np.moveaxis(values, axis, -1)).reshape(-1, values.shape[axis])


def as_it_was(rows: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    """Rows in the shape and the type of an input."""
    shape = (*like.shape[:axis], *like.shape[axis + 1 :], like.shape[axis])
    return np.moveaxis(rows.reshape(shape), -1, axis).astype(like.dtype)
