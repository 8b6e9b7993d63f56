"""Every mistake of the gauntlet: what is wrong, who reported it, where it can be made, and what the judge should say.

A mistake is an honest kernel with one step replaced. `judged` are the words of the judge's first diagnosis. `shows` says
of a case whether the mistake can make a difference there, if that needs something that few cases have. Of every
function that a mistake applies to some cases must have it, in each dtype: a kernel may come in any one of them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from refloss.cases.source import Case
from tests.gauntlet import resampling
from tests.gauntlet.elements import BceWithLogits, Focal
from tests.gauntlet.honest import HONEST, LABELLED, SOFTMAX, TOKENS
from tests.gauntlet.kernels import Kernel, sigmoid, with_steps
from tests.gauntlet.rows import CrossEntropy
from tests.gauntlet.wrapped import Head, Unclamped

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gauntlet.rows import Rows

TUTORIALS = "tutorial kernels"
BLOCK, VECTOR = 1024, 8  # classes that a kernel takes at once
_TINY = np.float32(np.finfo(np.float32).tiny)

ROWS = (*SOFTMAX, "nll")
IGNORING = tuple(name for name in ROWS if name != "question_answering")
COUNTING_ITEMS = LABELLED
DISTANCES = ("mse", "l1", "huber", "smooth_l1")
SIGMOIDS = ("bce_with_logits", "sigmoid_focal", "varifocal")
ELEMENTS = (*DISTANCES, "bce", "kl_div", *SIGMOIDS)
BOXES = ("iou", "giou")
REDUCED = ("cross_entropy", "nll", *ELEMENTS, "dice", *BOXES)
DETR = ("object_detection", "segmentation")
FOCAL = ("deformable_detr_object_detection", "grounding_dino_object_detection", "lw_detr_object_detection")
LAYERED = ("rt_detr_object_detection", "d_fine_object_detection", "deimv2_object_detection")


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


def stepped(base: type[Kernel] | None = None, **steps: Callable[..., Any]) -> Callable[[str], Kernel]:
    """Kernels of functions, with steps replaced."""
    return lambda function: with_steps(base or HONEST.get(function, Head), **steps)(function)


# What a case has.


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


def more_classes(count: int) -> Callable[[Case], bool]:
    """Whether a row has more classes than so many."""
    return lambda case: class_count(case) > count


def counting(case: Case) -> np.ndarray:
    """Which labels count, of those that are used."""
    labels = labels_of(case)
    if case.function == "question_answering":
        return labels < class_count(case)
    if case.function == "causal_lm" and "shift_labels" not in case.inputs:
        labels = labels[..., 1:]
    return labels != case.parameters.get("ignore_index", default_of(case.function))


def nothing_counts(case: Case) -> bool:
    """Whether a mean is over nothing."""
    return bool(labels_of(case).size) and not counting(case).any()


def beyond_32_bits(case: Case) -> bool:
    """Whether ignore_index is no int32."""
    return not -(2**31) <= case.parameters.get("ignore_index", 0) < 2**31


def several_cotangents(case: Case) -> bool:
    """Whether losses have cotangents of their own that differ."""
    return np.ndim(case.grad_output) > 0 and len(np.unique(np.asarray(case.grad_output))) > 1


def in_config(name: str) -> Callable[[Case], bool]:
    """Whether a head's configuration has an entry."""
    return lambda case: name in case.parameters.get("config", {})


# Steps of softmax.


def batch_maximum(self: CrossEntropy, x: np.ndarray) -> np.ndarray:
    return np.full((len(x), 1), x.max(initial=-np.inf), x.dtype)


def clamped_distances(lowest: float) -> Callable[..., np.ndarray]:
    return lambda self, x, maximum: np.maximum(x - maximum, x.dtype.type(lowest))


def clamped_logarithm(self: CrossEntropy, below: np.ndarray, terms: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(terms / total, _TINY))


def clamped_derivative(self: CrossEntropy, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    kept = np.where(p > _TINY, q, 0)
    return self.mass(rows, kept) * p - kept


def unrescaled(self: CrossEntropy, x: np.ndarray, maximum: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Each block's terms are relative to the largest logit so far, and stay so."""
    total = np.zeros((len(x), 1), x.dtype)
    for first in range(0, x.shape[1], BLOCK):
        so_far = x[:, : first + BLOCK].max(axis=1, keepdims=True)
        total += np.exp(x[:, first : first + BLOCK] - so_far).sum(axis=1, keepdims=True)
    return total


def without_tail(width: int) -> Callable[..., np.ndarray]:
    def total(self: CrossEntropy, x: np.ndarray, maximum: np.ndarray, terms: np.ndarray) -> np.ndarray:
        whole = x.shape[1] // width * width or x.shape[1]
        return self.sum(terms[:, :whole], axis=1)[:, None]

    return total


def only_first_block(self: CrossEntropy, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    gradient = CrossEntropy.derivative(self, rows, p, q)
    gradient[:, BLOCK:] = 0
    return gradient


def into_next_row(self: CrossEntropy, x: np.ndarray, maximum: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """The last vector of a row goes on where the next row lies in memory; beyond the last row is nothing."""
    classes = x.shape[1]
    beyond = np.concatenate([x.ravel(), np.full(VECTOR, -np.inf, x.dtype)])
    starts = (np.arange(len(x)) + 1) * classes
    more = beyond[starts[:, None] + np.arange(-classes % VECTOR)]
    return self.sum(terms, axis=1)[:, None] + np.exp(more - maximum).sum(axis=1, keepdims=True)


def with_padding(self: CrossEntropy, x: np.ndarray, maximum: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Logits of classes that are only there to make a multiple of 64 are 0."""
    return self.sum(terms, axis=1)[:, None] + (-x.shape[1] % 64) * np.exp(-maximum)


def in_16_bits(self: CrossEntropy, rows: Rows) -> np.ndarray:
    assert rows.labels is not None
    return np.where(self.counts(rows), rows.labels, 0).astype(np.int16).astype(np.int64) % rows.x.shape[1]


def product_with_one_hot(self: CrossEntropy, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    return self.sum(q * -log_p, axis=1)


def first_class_of_other_shard(rows: Rows, labels: np.ndarray) -> np.ndarray:
    half = rows.x.shape[1] // 2
    return np.where(labels < half, half, 0)[:, None]


def of_every_shard(self: CrossEntropy, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """The label's logit is the sum of what each of two shards finds for it."""
    losses = CrossEntropy.likelihood(self, rows, q, log_p)
    if rows.targets is not None or rows.x.shape[1] < 2:
        return losses
    labels = self.picked(rows)
    weight = rows.of_classes[labels]
    found = np.take_along_axis(log_p, first_class_of_other_shard(rows, labels), 1) - log_p.max(axis=1, keepdims=True)
    return losses - weight * found[:, 0]


def one_in_every_shard(self: CrossEntropy, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    gradient = CrossEntropy.derivative(self, rows, p, q)
    if rows.targets is None and rows.x.shape[1] > 1:
        labels = self.picked(rows)
        other = first_class_of_other_shard(rows, labels)
        found = np.take_along_axis(gradient, other, 1) - rows.of_classes[labels][:, None]
        np.put_along_axis(gradient, other, found, axis=1)
    return gradient


def solved_twice(self: CrossEntropy, rows: Rows) -> tuple[np.ndarray, ...]:
    terms = np.exp(rows.x - rows.x.max(axis=1, keepdims=True, initial=-np.inf))
    return CrossEntropy.solve(self, dataclasses.replace(rows, x=terms / terms.sum(axis=1, keepdims=True)))


# Labels and means.


def in_32_bits(self: Any, rows: Rows) -> np.ndarray:
    if rows.labels is None:
        return np.ones(len(rows.x), bool)
    return rows.labels.astype(np.int32) != np.array(rows.ignore_index).astype(np.int32)


def default_of(function: str) -> int:
    """What ignore_index is where nobody says."""
    return 255 if function == "semantic_segmentation" else -100


def everywhere(self: Any, rows: Rows) -> np.ndarray:
    return np.ones(len(rows.x), bool)


def gradient_everywhere(function: str) -> Kernel:
    """The loss skips ignored rows, the gradient does not: it is that of a row without a label."""
    if function == "nll":
        return with_steps(HONEST[function], has_gradient=everywhere)(function)

    def derivative(self: CrossEntropy, rows: Rows, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return np.where(self.counts(rows)[:, None], CrossEntropy.derivative(self, rows, p, q), p)

    return with_steps(CrossEntropy, has_gradient=everywhere, derivative=derivative)(function)


def truly_counted(rows: Rows) -> np.ndarray:
    """The rows that count, whatever a mistaken kernel thinks."""
    return np.ones(len(rows.x), bool) if rows.labels is None else rows.labels != rows.ignore_index


def of_true_count(self: Any, rows: Rows, counts: np.ndarray) -> Any:
    honest = HONEST[self.function]
    weights = np.where(truly_counted(rows), self.row_weights(rows, counts), 0)
    return self.sum(weights) if rows.reduction == "mean" and rows.items is None else honest.divisor(self, rows, counts)


def is_mean(rows: Rows) -> bool:
    """Whether a loss is divided by a count of its own."""
    return rows.reduction == "mean" and rows.items is None


def mean_of_means(parts: Callable[[Rows], int]) -> Callable[..., Any]:
    """Each part of the rows is averaged, then the parts' means are."""

    def divisor(self: Any, rows: Rows, counts: np.ndarray) -> Any:
        if not is_mean(rows) or len(rows.x) < 2 or not counts.any():
            return HONEST[self.function].divisor(self, rows, counts)
        weights = np.array_split(self.row_weights(rows, counts), max(parts(rows), 1))
        sums = [np.full(len(each), self.sum(each) or 1) for each in weights]
        return len(weights) * np.concatenate(sums).astype(rows.x.dtype)

    return divisor


def over(count: Callable[[Any, Rows, np.ndarray], Any]) -> Callable[..., Any]:
    """A mean over another count."""

    def divisor(self: Any, rows: Rows, counts: np.ndarray) -> Any:
        honest = HONEST[self.function]
        return rows.x.dtype.type(count(self, rows, counts)) if is_mean(rows) else honest.divisor(self, rows, counts)

    return divisor


def at_least_one(self: Any, rows: Rows, counts: np.ndarray) -> Any:
    found = HONEST[self.function].divisor(self, rows, counts)
    return found if counts.any() else rows.x.dtype.type(1)


def counted_before_shift(self: CrossEntropy, inputs: dict[str, Any], parameters: dict[str, Any]) -> Any:
    given = parameters.get("num_items_in_batch")
    labels = inputs.get("shift_labels", inputs["labels"])
    return np.count_nonzero(labels != parameters.get("ignore_index", -100)) if given is None else given


def shifted_flat(self: CrossEntropy, labels: np.ndarray, ignored: int) -> np.ndarray:
    return np.append(labels.ravel()[1:], ignored).reshape(labels.shape)


def shifted_in_shards(self: CrossEntropy, labels: np.ndarray, ignored: int) -> np.ndarray:
    shards = np.array_split(labels, 2, axis=-1)
    return np.concatenate([CrossEntropy.shifted(self, shard, ignored) for shard in shards], axis=-1)


def shifted_twice(self: CrossEntropy, labels: np.ndarray, ignored: int) -> np.ndarray:
    once = CrossEntropy.shifted(self, labels, ignored)
    return CrossEntropy.shifted(self, once, ignored)


def shifted_again(function: str) -> Kernel:
    """Labels that are in their places are moved to the next token's."""

    def answer(self: CrossEntropy, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Any:
        ignored = parameters.get("ignore_index", -100)
        moved = CrossEntropy.shifted(self, inputs["labels"].astype(np.int64), ignored)
        return CrossEntropy.answer(self, inputs | {"labels": moved}, parameters, cotangent)

    return with_steps(CrossEntropy, answer=answer)(function)


# Label smoothing and distributions.


def whole_share(self: CrossEntropy, rows: Rows, hard: np.ndarray) -> np.ndarray:
    return rows.x.dtype.type(1 - rows.smoothing) * hard + rows.x.dtype.type(rows.smoothing)


def share_of_others(self: CrossEntropy, rows: Rows, hard: np.ndarray) -> np.ndarray:
    others = max(rows.x.shape[1] - 1, 1)
    return rows.x.dtype.type(1 - rows.smoothing) * hard + rows.x.dtype.type(rows.smoothing / others) * (1 - hard)


def smoothing_everywhere(self: CrossEntropy, rows: Rows) -> np.ndarray:
    return np.ones(len(rows.x), bool) if rows.smoothing else self.counts(rows)


def unweighted_smoothing(self: CrossEntropy, rows: Rows) -> np.ndarray:
    hard = self.hard(rows)
    smooth = self.smoothed(rows, np.zeros_like(hard)) if rows.smoothing else 0
    return rows.x.dtype.type(1 - rows.smoothing) * hard * rows.of_classes + smooth


def one_if_soft(self: CrossEntropy, rows: Rows, q: np.ndarray) -> np.ndarray:
    return CrossEntropy.mass(self, rows, q) if rows.targets is None else np.ones((len(q), 1), q.dtype)


def by_divergence(self: CrossEntropy, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """The divergence and the entropy of the target, both with log q."""
    if rows.targets is None:
        return CrossEntropy.likelihood(self, rows, q, log_p)
    return self.sum(q * (np.log(q) - log_p), axis=1) - self.sum(q * np.log(q), axis=1)


# Sums.


def chain(values: np.ndarray, axis: int | None, dtype: Any) -> np.ndarray:
    """One running sum, rounded after each addition."""
    values = values.ravel() if axis is None else values
    if not values.size:
        return values.sum(axis=axis or 0)
    total = np.add.accumulate(values.astype(dtype), axis=axis or 0, dtype=dtype).take(-1, axis=axis or 0)
    return np.asarray(total).astype(values.dtype)


def in_one_chain(self: Kernel, values: np.ndarray, axis: int | None = None) -> np.ndarray:
    return chain(values, axis, values.dtype)


def in_bfloat16(self: Kernel, values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Sums of losses; those of a row are in float32."""
    return (
        chain(values, axis, ml_dtypes.bfloat16) if axis is None and values.dtype != bool else np.sum(values, axis=axis)
    )


def rounded_losses(self: Any, rows: Rows, losses: np.ndarray, counts: np.ndarray) -> np.ndarray:
    stored = losses.astype(ml_dtypes.bfloat16).astype(losses.dtype)
    return HONEST[self.function].reduced(self, rows, stored, counts)


def rounded_elements(self: Any, losses: np.ndarray, divisor: Any, parameters: dict[str, Any]) -> np.ndarray:
    stored = losses.astype(ml_dtypes.bfloat16).astype(losses.dtype)
    return HONEST[self.function].reduced(self, stored, divisor, parameters)


def many_elements(function: str) -> list[Case]:
    """More float32 terms than one chain can add up."""
    values = np.full(2**24, 1.1, np.float32)
    return [Case(f"{function}-long", function, {"input": values, "target": np.zeros_like(values)}, {}, 1.0)]


# Whatever the function.


def without(name: str, function: str) -> Kernel:
    """A kernel that has never heard of an argument."""
    honest = HONEST[function]

    def answer(self: Kernel, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Any:
        known = {key: value for key, value in inputs.items() if key != name}
        options = {key: value for key, value in parameters.items() if key != name}
        loss, grads = honest.answer(self, known, options, cotangent)
        if name == "weight" and name in inputs and getattr(self, "weight_differentiable", False):
            grads = grads | {name: np.zeros_like(inputs[name])}
        return loss, grads

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
            loss, grads = honest.answer(self, *arguments)
            return loss, {name: change(value) for name, value in grads.items()}

        return with_steps(honest, answer=answer)(function)

    return kernel


def from_above(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[str], Kernel]:
    """A kernel that takes the upstream gradient for another."""
    return stepped(upstream=lambda self, cotangent, like: change(np.asarray(cotangent).astype(like.dtype)))


# Elements.


def overflowing(x: np.ndarray) -> np.ndarray:
    return np.log(1 + np.exp(x))


def overflowing_focal(self: Focal, x: np.ndarray, opposite: np.ndarray) -> np.ndarray:
    t = np.where(x > 0, 1 - opposite, opposite)
    return t * overflowing(-x) + (1 - t) * overflowing(x)


def naive_softplus(function: str) -> Kernel:
    """log(1 + e^x) as it is written."""
    if function == "bce_with_logits":
        return with_steps(BceWithLogits, sides=lambda self, x: (overflowing(-x), overflowing(x)))(function)
    return with_steps(HONEST[function], cross_entropy=overflowing_focal)(function)


def clamped_logits(function: str) -> Kernel:
    """Logits beyond ±15 are taken for ±15."""
    honest = HONEST[function]
    if function != "bce_with_logits":
        return with_steps(honest, clamped=lambda self, x: np.clip(x, -15, 15))(function)

    def element(self: Any, x: np.ndarray, *rest: Any) -> Any:
        return honest.element(self, np.clip(x, -15, 15), *rest)

    return with_steps(honest, element=element)(function)


def rounded_away(function: str) -> Kernel:
    """What is missed of a probability is 1 minus the probability."""
    if function == "bce_with_logits":
        return with_steps(BceWithLogits, missed=lambda self, x: (1 - sigmoid(x), sigmoid(x)))(function)

    def missed(self: Focal, x: np.ndarray, opposite: np.ndarray) -> np.ndarray:
        p, t = sigmoid(x), np.where(x > 0, 1 - opposite, opposite)
        return 1 - (p * t + (1 - p) * (1 - t))

    def power(self: Focal, x: np.ndarray, lost: np.ndarray, gamma: float) -> np.ndarray:
        return lost ** lost.dtype.type(gamma)

    return with_steps(Focal, missed=missed, power=power)(function)


def infinite_power(
    self: Focal, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]
) -> Any:
    """The focal factor's derivative is γ·(1 − p_t)^(γ − 1), from a probability that is rounded to 1."""
    losses, of_x, of_t = Focal.element(self, x, t, parameters, inputs)
    gamma, p = x.dtype.type(parameters.get("gamma", 2.0)), sigmoid(x)
    a, _ = self.balance(t, float(parameters.get("alpha", 0.25)))
    missed = 1 - (p * t + (1 - p) * (1 - t))
    b = self.cross_entropy(x, np.where(x > 0, 1 - t, t))
    slope = gamma * missed ** (gamma - 1) if gamma else 0
    return losses, a * (missed**gamma * (p - t) + slope * b * (1 - 2 * t) * p * (1 - p)), of_t


def balance(of: Callable[[np.ndarray, float], np.ndarray], slope: Callable[[float], float]) -> Callable[..., Any]:
    """Another weight of positives and negatives, and its derivative in the target."""

    def step(self: Focal, t: np.ndarray, alpha: float) -> Any:
        if alpha < 0:
            return Focal.balance(self, t, alpha)
        return of(t, t.dtype.type(alpha)), t.dtype.type(slope(alpha))

    return step


def reversed_of_probabilities(self: Any, x: np.ndarray, t: np.ndarray) -> Any:
    p = np.exp(x)
    return p * (x - np.log(t)), p * (x - np.log(t) + 1), -p / t


def reversed_of_logarithms(self: Any, x: np.ndarray, u: np.ndarray) -> Any:
    p = np.exp(x)
    return p * (x - u), p * (x - u + 1), -p


def without_entropy(self: Any, x: np.ndarray, t: np.ndarray) -> Any:
    return -t * x, -t, -x


def logarithms_without_entropy(self: Any, x: np.ndarray, u: np.ndarray) -> Any:
    t = np.exp(u)
    return -t * x, -t, -t * x


def with_floor(self: Any, x: np.ndarray, t: np.ndarray) -> Any:
    logarithm = np.log(np.maximum(t, x.dtype.type(1e-10)))
    return t * (logarithm - x), -t, logarithm + 1 - x


def over_elements(self: Any, x: np.ndarray, weight: np.ndarray, parameters: dict[str, Any]) -> Any:
    reduction = "mean" if parameters.get("reduction") == "batchmean" else parameters.get("reduction", "mean")
    return HONEST[self.function].divisor(self, x, weight, parameters | {"reduction": reduction})


def across(self: Any, x: np.ndarray, inputs: dict[str, Any]) -> Any:
    """A factor for each class is taken for one of each row."""
    given = inputs.get("pos_weight")
    if given is None or given.ndim != 1 or x.ndim < 2:
        return BceWithLogits.factors(self, x, inputs)
    column = np.resize(given.astype(x.dtype), len(x)).reshape(-1, *(1,) * (x.ndim - 1))
    return np.broadcast_to(column, x.shape), 1


def huber_for_smooth(
    self: Any, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]
) -> Any:
    beta = x.dtype.type(parameters.get("beta", 1.0))
    return tuple(beta * each for each in HONEST["smooth_l1"].element(self, x, t, parameters, inputs))


def misplaced_beta(self: Any, x: np.ndarray, t: np.ndarray, parameters: dict[str, Any], inputs: dict[str, Any]) -> Any:
    beta, difference = x.dtype.type(parameters.get("beta", 1.0)), x - t
    distance = np.abs(difference)
    inner = distance < beta
    slope = np.where(inner, difference, np.sign(difference))
    return np.where(inner, difference * difference / 2, distance - x.dtype.type(0.5)), slope, -slope


# Masks and boxes.


def over_batch(self: Any, values: np.ndarray) -> np.ndarray:
    return np.full((len(values), 1), self.sum(values))


def enclosing_for_union(self: Any, x: Any, y: Any) -> np.ndarray:
    return 1 - x.common * y.common / (x.around * y.around)


def slopes_of_enclosing(self: Any, x: Any, y: Any) -> np.ndarray:
    common, around = (x.common * y.common)[..., None], (x.around * y.around)[..., None]
    of_common, of_around = x.of_common * y.common[..., None], x.of_around * y.around[..., None]
    return (common * of_around - around * of_common) / around**2


def intersection_for_union(self: Any, x: Any, y: Any) -> np.ndarray:
    common, enclosing = x.common * y.common, x.around * y.around
    return HONEST["iou"].loss(self, x, y) + (enclosing - common) / enclosing


def slopes_of_intersection(self: Any, x: Any, y: Any) -> np.ndarray:
    return HONEST["iou"].slopes(self, x, y) + slopes_of_enclosing(self, x, y)


# Heads that match.


def entry(name: str, value: Any, report: str, functions: tuple[str, ...], words: str = "") -> Mistake:
    """An entry of the configuration that is not read: another value has its place."""
    words = words or f"{name} in config is ignored"
    kernel = stepped(Head, config=lambda self, config: config | {name: value})
    return Mistake(
        words,
        report,
        functions,
        kernel,
        words,
        lambda case: case.parameters["config"].get(name, value) != value,
        f"where {name} is not {value}",
    )


def swapped_alpha(self: Any, config: dict[str, Any]) -> dict[str, Any]:
    return config | {
        name: 1 - config[name] for name in ("focal_alpha", "focal_loss_alpha") if config.get(name, -1) >= 0
    }


def without_number(self: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if name != "num_boxes"}


def has_layers(case: Case) -> bool:
    """Whether layers beside the last have a loss."""
    return "outputs_class" in case.inputs and bool(case.parameters["config"].get("auxiliary_loss"))


WITHIN_BLOCK = f"where a row has more than {BLOCK} classes"

SOFTMAX_MISTAKES = [
    Mistake(
        "no maximum is subtracted",
        "deeplearning4j/deeplearning4j#6039",
        SOFTMAX,
        stepped(maximum=lambda self, x: np.zeros((len(x), 1), x.dtype)),
        "no maximum is subtracted before the exponential",
    ),
    Mistake(
        "the batch's maximum for the row's",
        "apache/singa#540",
        SOFTMAX,
        stepped(maximum=batch_maximum),
        "the maximum of the whole batch is subtracted instead of the row's",
    ),
    Mistake(
        "a maximum of at least −64",
        "PaddlePaddle/Paddle#21165",
        SOFTMAX,
        stepped(maximum=lambda self, x: np.maximum(CrossEntropy.maximum(self, x), x.dtype.type(-64))),
        "the row's maximum is not taken below a limit",
    ),
    Mistake(
        "a maximum of at least 0",
        "FluxML/NNlib.jl#43",
        SOFTMAX,
        stepped(maximum=lambda self, x: np.maximum(CrossEntropy.maximum(self, x), x.dtype.type(0))),
        "the row's maximum is not taken below a limit",
    ),
    Mistake(
        "distances clamped at −50",
        "PaddlePaddle/Paddle#21165",
        SOFTMAX,
        stepped(below=clamped_distances(-50)),
        "distances to the maximum are clamped",
    ),
    Mistake(
        "distances clamped at −80",
        "AITIAL/OpenWhiz#50",
        SOFTMAX,
        stepped(below=clamped_distances(-80)),
        "distances to the maximum are clamped",
    ),
    Mistake(
        "log(max(p, FLT_MIN))",
        "DigiRL-agent/digirl#22",
        SOFTMAX,
        stepped(log_probabilities=clamped_logarithm, derivative=clamped_derivative),
        "the logarithm is of max(p, tiny): improbable targets are clamped",
    ),
    Mistake(
        "log(p) of a probability that is rounded to 0",
        "tenstorrent/tt-forge-onnx#3405",
        SOFTMAX,
        stepped(log_probabilities=lambda self, below, terms, total: np.log(terms / total)),
        "the logarithm is of a rounded probability",
    ),
    Mistake(
        "log(p + 1e-30)",
        "apache/mxnet#4594",
        SOFTMAX,
        stepped(log_probabilities=lambda self, below, terms, total: np.log(terms / total + terms.dtype.type(1e-30))),
        "the logarithm is of p + ε",
    ),
    Mistake(
        "blocks: the sum is not rescaled",
        "Dao-AILab/flash-attention#2174",
        SOFTMAX,
        stepped(total=unrescaled),
        "blocks of classes: the running sum is not rescaled when the maximum grows",
        more_classes(BLOCK),
        WITHIN_BLOCK,
    ),
    Mistake(
        "blocks: the tail is lost",
        "verl-project/verl#2899",
        SOFTMAX,
        stepped(total=without_tail(BLOCK)),
        "blocks of classes: the tail is left out",
        lambda case: class_count(case) > BLOCK and class_count(case) % BLOCK != 0,
        f"{WITHIN_BLOCK}, and not a multiple of it",
    ),
    Mistake(
        "vectors of 8: the tail is lost",
        "triton-lang/triton#630",
        SOFTMAX,
        stepped(total=without_tail(VECTOR)),
        "blocks of classes: the tail is left out",
        lambda case: class_count(case) > VECTOR and class_count(case) % VECTOR != 0,
        f"where there are more than {VECTOR} classes, and not a multiple of it",
    ),
    Mistake(
        "blocks: a gradient of the first one",
        TUTORIALS,
        SOFTMAX,
        stepped(derivative=only_first_block),
        "blocks of classes: only the first block has a gradient",
        more_classes(BLOCK),
        WITHIN_BLOCK,
    ),
    Mistake(
        "vectors of 8: the tail reads the next row",
        "triton-lang/triton#435",
        SOFTMAX,
        stepped(total=into_next_row),
        "blocks of classes: the tail reads the next row",
        lambda case: class_count(case) % VECTOR != 0,
        f"where the classes are not a multiple of {VECTOR}",
    ),
    Mistake(
        "padded classes",
        "verl-project/verl#5349",
        SOFTMAX,
        stepped(total=with_padding),
        "padded classes are counted",
        lambda case: class_count(case) % 64 != 0,
        "where the classes are not a multiple of 64",
    ),
    Mistake(
        "a label in 16 bits",
        "PaddlePaddle/Paddle#30590",
        SOFTMAX,
        stepped(picked=in_16_bits),
        "an index of 16 bits wraps",
        lambda case: bool((labels_of(case) >= 2**15).any()) and class_count(case) > 2**15,
        "where a label is beyond 16 bits",
    ),
    Mistake(
        "one-hot times −inf",
        "google-deepmind/optax#896",
        SOFTMAX,
        stepped(likelihood=product_with_one_hot),
        "−inf logits (masked classes) give NaN",
        lambda case: not soft(case) and any(np.isneginf(each.astype(np.float64)).any() for each in logits_of(case)),
        "where a logit is −inf",
    ),
    Mistake(
        "a shard without the label",
        "apple/ml-cross-entropy#59",
        SOFTMAX,
        stepped(likelihood=of_every_shard, derivative=one_in_every_shard),
        "a vocabulary shard without the label answers with its own first class",
        lambda case: not soft(case) and class_count(case) > 1,
        "where there are labels, and two shards",
    ),
    Mistake(
        "softmax twice",
        "huggingface/transformers#45111",
        SOFTMAX,
        stepped(solve=solved_twice),
        "double softmax, or sigmoid: probabilities are taken as logits",
    ),
    Mistake(
        "softmax along the rows",
        "MicrosoftDocs/pytorchfundamentals#21",
        ("cross_entropy",),
        stepped(
            maximum=lambda self, x: x.max(axis=0, keepdims=True, initial=-np.inf),
            total=lambda self, x, maximum, terms: terms.sum(axis=0, keepdims=True),
        ),
        "wrong axis: softmax along axis 0 instead of 1",
    ),
]

LABEL_MISTAKES = [
    Mistake(
        "ignore_index in 32 bits",
        "PaddlePaddle/Paddle#30590",
        IGNORING,
        stepped(counts=in_32_bits),
        "ignore_index is cut to 32 bits",
        beyond_32_bits,
        "where ignore_index is beyond 32 bits",
    ),
    Mistake(
        "ignore_index is not read",
        "lucidrains/DALLE-pytorch#57",
        IGNORING,
        stepped(ignored=lambda self, rows: default_of(self.function)),
        "ignore_index is taken to be its default",
        has("ignore_index"),
        "where ignore_index is given",
    ),
    Mistake(
        "ignored rows count",
        "DaoyuanLi2816/Molecule-Generator#20",
        ROWS,
        stepped(counts=everywhere),
        "ignored rows are included, in the count as well",
    ),
    Mistake(
        "ignored rows are added up",
        "pytorch/pytorch#108148",
        ROWS,
        stepped(counts=everywhere, divisor=of_true_count),
        "ignored rows are included",
    ),
    Mistake(
        "ignored rows have a gradient",
        "PaddlePaddle/Paddle#28622",
        ROWS,
        gradient_everywhere,
        "ignored rows are included: their gradient is not 0",
    ),
    Mistake(
        "chunks' means",
        "huggingface/transformers#34242",
        ROWS,
        stepped(divisor=mean_of_means(lambda rows: 2)),
        "a mean of the means of chunks",
    ),
    Mistake(
        "sequences' means",
        "huggingface/trl#2995",
        (*TOKENS, "semantic_segmentation"),
        stepped(divisor=mean_of_means(lambda rows: rows.shape[0])),
        "a mean of the means of sequences",
    ),
    Mistake(
        "a mean over all rows",
        "eladhoffer/utils.pytorch#4",
        ROWS,
        stepped(divisor=over(lambda self, rows, counts: len(rows.x))),
        "a mean over all rows",
    ),
    Mistake(
        "a gradient over all rows",
        "NVIDIA/TransformerEngine#2476",
        ROWS,
        stepped(gradient_divisor=over(lambda self, rows, counts: len(rows.x))),
        "the gradient is that of a mean over all rows (loss right)",
    ),
    Mistake(
        "a sum for a mean",
        "pytorch/pytorch#11149",
        ROWS,
        stepped(divisor=over(lambda self, rows, counts: 1)),
        "a sum for a mean",
    ),
    Mistake(
        "counted before the shift",
        "huggingface/transformers#46204",
        ("causal_lm",),
        stepped(items=counted_before_shift),
        "labels are counted before the shift",
        lambda case: "shift_labels" not in case.inputs,
        "where labels are shifted",
    ),
    Mistake(
        "shifted over the batch",
        "huggingface/transformers#47394",
        ("causal_lm",),
        stepped(shifted=shifted_flat),
        "labels are shifted over the flattened batch",
        lambda case: "shift_labels" not in case.inputs,
        "where labels are shifted",
    ),
    Mistake(
        "shifted in each shard",
        "huggingface/transformers#36607",
        ("causal_lm",),
        stepped(shifted=shifted_in_shards),
        "labels are shifted within each shard of a sequence",
        lambda case: "shift_labels" not in case.inputs,
        "where labels are shifted",
    ),
    Mistake(
        "not shifted",
        "huggingface/transformers#27517",
        ("causal_lm",),
        stepped(shifted=lambda self, labels, ignored: labels),
        "labels are not shifted",
        lambda case: "shift_labels" not in case.inputs,
        "where labels are shifted",
    ),
    Mistake(
        "shifted twice",
        "huggingface/transformers#47395",
        ("causal_lm",),
        stepped(shifted=shifted_twice),
        "labels are shifted by one position too many",
        lambda case: "shift_labels" not in case.inputs,
        "where labels are shifted",
    ),
    Mistake(
        "rolled",
        "alibaba/ChatLearn#343",
        ("causal_lm",),
        stepped(shifted=lambda self, labels, ignored: np.roll(labels, -1, axis=-1)),
        "labels are rolled, so that the last position predicts the first token",
        lambda case: "shift_labels" not in case.inputs,
        "where labels are shifted",
    ),
    Mistake(
        "shifted where they should not be",
        "huggingface/transformers#46784",
        ("masked_lm", "token_classification"),
        shifted_again,
        "labels are shifted by one position",
    ),
    Mistake(
        "nothing counts: 0",
        "pytorch/pytorch#70348",
        ROWS,
        stepped(divisor=at_least_one),
        "all labels ignored gives 0 instead of NaN",
        nothing_counts,
        "where no label counts",
    ),
    Mistake(
        "rows for their weights",
        "pytorch/pytorch#61309",
        ("cross_entropy", "nll"),
        stepped(divisor=over(lambda self, rows, counts: np.count_nonzero(counts))),
        "a mean over rows instead of their weights",
        has("weight"),
        "where classes have weights",
    ),
    Mistake(
        "smoothing without 1/K",
        "TimDettmers/ConvE#55",
        ("cross_entropy",),
        stepped(smoothed=whole_share),
        "label smoothing without 1/K",
        has("label_smoothing"),
        "where labels are smoothed",
    ),
    Mistake(
        "smoothing over the others",
        "fastai/fastai#1814",
        ("cross_entropy",),
        stepped(smoothed=share_of_others),
        "label smoothing gives the other classes ε/(K − 1) instead of ε/K",
        has("label_smoothing"),
        "where labels are smoothed",
    ),
    Mistake(
        "smoothing of ignored rows",
        "pytorch/pytorch#73205",
        ("cross_entropy",),
        stepped(included=smoothing_everywhere, has_gradient=smoothing_everywhere),
        "label smoothing reaches ignored rows",
        has("label_smoothing"),
        "where labels are smoothed",
    ),
    Mistake(
        "smoothing without weights",
        "pytorch/pytorch#91383",
        ("cross_entropy",),
        stepped(masses=unweighted_smoothing),
        "class weights do not weigh label smoothing",
        lambda case: has("label_smoothing")(case) and has("weight")(case),
        "where weighted labels are smoothed",
    ),
    Mistake(
        "Σq is 1",
        "kvark/meganeura#102",
        ("cross_entropy",),
        stepped(mass=one_if_soft),
        "soft targets are taken to sum to 1: Σq is dropped from the gradient",
        soft,
        "where targets are distributions",
    ),
    Mistake(
        "q·log q",
        "Lightning-AI/torchmetrics#1029",
        ("cross_entropy",),
        stepped(likelihood=by_divergence),
        "soft targets: t·log t is NaN where t is 0",
        soft,
        "where targets are distributions",
    ),
    ignored(
        "weight", "pytorch/pytorch#54843", ("cross_entropy", "nll", "mse", "l1", "huber", "bce", "bce_with_logits")
    ),
    ignored("label_smoothing", "huggingface/trl#7063", ("cross_entropy",)),
    ignored("num_items_in_batch", "huggingface/transformers#46731", COUNTING_ITEMS),
]

UPSTREAM_MISTAKES = [
    Mistake(
        "upstream ignored",
        "ROCm/TransformerEngine#336",
        tuple(HONEST),
        from_above(np.ones_like),
        "upstream gradient ignored",
    ),
    Mistake(
        "upstream applied twice",
        TUTORIALS,
        tuple(HONEST),
        from_above(np.square),
        "upstream gradient applied twice",
    ),
    Mistake(
        "the first upstream for all",
        "linkedin/Liger-Kernel#968",
        REDUCED,
        from_above(lambda cotangent: cotangent.ravel()[:1].reshape(()) if cotangent.size else cotangent),
        "the first element of the upstream gradient is used for all rows",
        several_cotangents,
        "where losses have cotangents of their own",
    ),
    Mistake("a wrong sign", "jsboige/CoursIA#16165", tuple(HONEST), of_gradients(np.negative), "a wrong sign"),
    Mistake("no gradient", "KernelBench#165", tuple(HONEST), of_gradients(np.zeros_like), "zero everywhere"),
    Mistake(
        "transposed",
        TUTORIALS,
        ("mse", "kl_div", "bce_with_logits"),
        of_gradients(lambda values: np.ascontiguousarray(values.T).reshape(values.shape)),
        "transposed: axes 0 and 1 are exchanged",
        lambda case: next(iter(case.inputs.values())).ndim == 2,
        "where there are two axes",
    ),
    Mistake(
        "the next row's gradient",
        "flagos-ai/FlagGems#5026",
        ("cross_entropy", "nll", "masked_lm", "mse"),
        of_gradients(lambda values: np.roll(values, -1, axis=max(values.ndim - 2, 0)) if values.ndim else values),
        "shifted by one position",
    ),
    Mistake(
        "losses in 16 bits",
        "Modalities/modalities#464",
        ROWS,
        stepped(reduced=rounded_losses),
        "losses are rounded to 16 bits before they are added",
    ),
    Mistake(
        "losses of elements in 16 bits",
        "pytorch/xla#2425",
        ELEMENTS,
        stepped(reduced=rounded_elements),
        "losses are rounded to 16 bits before they are added",
    ),
    Mistake(
        "sums in 16 bits",
        "pytorch/pytorch#166232",
        (*ROWS, *ELEMENTS),
        stepped(sum=in_bfloat16),
        "sums are accumulated in the 16-bit type",
    ),
    Mistake(
        "one chain",
        "pytorch/pytorch#55657",
        ("mse",),
        stepped(sum=in_one_chain),
        "a running sum in one chain (naive float32)",
        cases=many_elements,
        why="where millions of terms are added, more than a golden case has",
    ),
]

ELEMENT_MISTAKES = [
    Mistake(
        "KL reversed",
        "paiml/aprender#2153",
        ("kl_div",),
        stepped(of_probabilities=reversed_of_probabilities, of_logarithms=reversed_of_logarithms),
        "KL divergence is reversed",
    ),
    Mistake(
        "no entropy",
        "jongwooko/distillm#7",
        ("kl_div",),
        stepped(of_probabilities=without_entropy, of_logarithms=logarithms_without_entropy),
        "the entropy of the target is left out",
    ),
    Mistake(
        "t·log t",
        "Lightning-AI/torchmetrics#1029",
        ("kl_div",),
        stepped(entropy=lambda self, t: t * np.log(t)),
        "soft targets: t·log t is NaN where t is 0",
    ),
    Mistake(
        "log(max(t, 1e-10))",
        "modelscope/easydistill#16",
        ("kl_div",),
        stepped(of_probabilities=with_floor),
        "soft targets: log of max(t, ε)",
    ),
    ignored("log_target", "pytorch/pytorch#69230", ("kl_div",)),
    Mistake(
        "batchmean over elements",
        "huggingface/trl#4105",
        ("kl_div",),
        stepped(divisor=over_elements),
        "batchmean is a mean over elements",
        lambda case: case.parameters.get("reduction") == "batchmean",
        "where the reduction is batchmean",
    ),
    ignored("pos_weight", "open-mmlab/mmpretrain#434", ("bce_with_logits",)),
    Mistake(
        "pos_weight of negatives",
        TUTORIALS,
        ("bce_with_logits",),
        stepped(factors=lambda self, x, inputs: BceWithLogits.factors(self, x, inputs)[::-1]),
        "pos_weight is on the negative side",
        has("pos_weight"),
        "where pos_weight is given",
    ),
    Mistake(
        "pos_weight of rows",
        "pytorch/pytorch#27936",
        ("bce_with_logits",),
        stepped(factors=across),
        "pos_weight is along the wrong axis",
        lambda case: "pos_weight" in case.inputs and case.inputs["pos_weight"].ndim == 1,
        "where pos_weight is of classes",
    ),
    Mistake(
        "softplus overflows",
        "neoml-lib/neoml#459",
        SIGMOIDS,
        naive_softplus,
        "softplus overflows: log(1 + e^x) without |x|",
    ),
    Mistake(
        "logits clamped",
        "xingyizhou/CenterNet#234",
        SIGMOIDS,
        clamped_logits,
        "logits are clamped (at ±15)",
    ),
    Mistake(
        "1 − p",
        "google-deepmind/optax#1346",
        ("bce_with_logits", "sigmoid_focal"),
        rounded_away,
        "the missed probability is 1 − p",
    ),
    Mistake(
        "γ − 1",
        "kornia/kornia#918",
        ("sigmoid_focal",),
        stepped(element=infinite_power),
        "γ < 1: the power (1 − p_t)^(γ − 1) is infinite",
        lambda case: 0 < case.parameters.get("gamma", 2.0) < 1,
        "where γ is below 1",
    ),
    Mistake(
        "α swapped",
        "clcarwin/focal_loss_pytorch#10",
        ("sigmoid_focal",),
        stepped(balance=balance(lambda t, alpha: (1 - alpha) * t + alpha * (1 - t), lambda alpha: 1 - 2 * alpha)),
        "α is swapped",
    ),
    Mistake(
        "α on both sides",
        "mkocabas/focal-loss-keras#6",
        ("sigmoid_focal",),
        stepped(balance=balance(lambda t, alpha: np.full_like(t, alpha), lambda alpha: 0.0)),
        "α is on both sides",
    ),
    Mistake(
        "α on positives only",
        TUTORIALS,
        ("sigmoid_focal",),
        stepped(balance=balance(lambda t, alpha: alpha * t + (1 - t), lambda alpha: alpha - 1)),
        "α is only on positives",
    ),
    Mistake(
        "focal factor held constant",
        "clcarwin/focal_loss_pytorch#5",
        ("sigmoid_focal",),
        stepped(slope=lambda self, missed, gamma: missed.dtype.type(0)),
        "the focal factor is held constant",
    ),
    ignored("alpha", "unsky/focal-loss#9", ("sigmoid_focal", "varifocal")),
    ignored("gamma", "davisking/dlib#2552", ("sigmoid_focal", "varifocal")),
    ignored("num_boxes", "facebookresearch/detr#299", ("sigmoid_focal", "varifocal", "dice")),
    Mistake(
        "log of a sigmoid",
        "huggingface/candle#2562",
        ("bce_with_logits",),
        stepped(sides=lambda self, x: (-np.log(sigmoid(x)), -np.log(1 - sigmoid(x)))),
        "log σ(x) by the logarithm of a rounded sigmoid",
    ),
    Mistake(
        "logarithms not clamped",
        "ml-explore/mlx#1280",
        ("bce",),
        stepped(clamped=lambda self, logarithm: logarithm),
        "the logarithm is not clamped at −100",
    ),
    Mistake(
        "Huber for smooth L1",
        "pytorch/pytorch#48595",
        ("smooth_l1",),
        stepped(element=huber_for_smooth),
        "Huber for smooth L1 (a factor of β)",
        lambda case: case.parameters.get("beta", 1.0) != 1,
        "where β is not 1",
    ),
    Mistake(
        "β misplaced",
        "keras-team/keras-cv#920",
        ("smooth_l1",),
        stepped(element=misplaced_beta),
        "β is in the wrong place",
        lambda case: case.parameters.get("beta", 1.0) != 1,
        "where β is not 1",
    ),
    ignored("beta", "fastestimator/fastestimator#330", ("smooth_l1",)),
    ignored("delta", "xuannianz/EfficientDet#93", ("huber",)),
    Mistake(
        "no factor of 2",
        "davisking/dlib#1169",
        ("mse",),
        stepped(slope=lambda self, difference: difference),
        "the derivative lacks its factor 2",
    ),
    Mistake(
        "elements for their weights",
        "pytorch/pytorch#65329",
        ("mse", "l1"),
        stepped(mean_of_weights=False),  # type: ignore[arg-type]
        "a mean over all elements instead of the sum of weights",
        lambda case: "weight" in case.inputs and case.parameters.get("reduction", "mean") == "mean",
        "where elements have weights",
    ),
]

REGION_MISTAKES = [
    Mistake(
        "align_corners",
        "dmlc/gluon-cv#437",
        ("semantic_segmentation",),
        stepped(weights=lambda self, size, resized: resampling.corners_aligned(size, resized)),
        "align_corners is on",
    ),
    Mistake(
        "nearest",
        "NVIDIA-AI-IOT/torch2trt#160",
        ("semantic_segmentation",),
        stepped(weights=lambda self, size, resized: resampling.nearest(size, resized)),
        "nearest instead of bilinear",
    ),
    Mistake(
        "no auxiliary loss",
        "mseg-dataset/mseg-semantic#16",
        ("semantic_segmentation",),
        stepped(auxiliary_weight=lambda self, parameters: 0.0),
        "the auxiliary loss is left out",
        has("auxiliary_logits"),
        "where there are auxiliary logits",
    ),
    ignored("auxiliary_loss_weight", "open-mmlab/mmsegmentation#802", ("semantic_segmentation",)),
    ignored("box_format", "stevebottos/owl-vit-object-detection#14", BOXES),
    Mistake(
        "the enclosing box for the union",
        TUTORIALS,
        ("iou",),
        stepped(loss=enclosing_for_union, slopes=slopes_of_enclosing),
        "the enclosing box is taken for the union",
    ),
    Mistake(
        "the intersection for the union",
        "Megvii-BaseDetection/YOLOX#712",
        ("giou",),
        stepped(loss=intersection_for_union, slopes=slopes_of_intersection),
        "the intersection is taken for the union",
    ),
    Mistake(
        "boxes apart overlap",
        "LongxingTan/tfyolo#4",
        BOXES,
        stepped(overlap=lambda self, length: length),
        "boxes are not clamped",
    ),
    Mistake(
        "dice without 1",
        "aim-uofa/AdelaiDet#610",
        ("dice",),
        stepped(one=lambda self: 0),
        "dice lacks its + 1",
    ),
    Mistake(
        "dice of the batch",
        "NifTK/NiftyNet#22",
        ("dice",),
        stepped(sums=over_batch, together=lambda self, losses: losses.mean()),
        "dice sums over the batch",
    ),
]

HEAD_MISTAKES = [
    entry("eos_coefficient", 1.0, "facebookresearch/detr#356", DETR, "eos coefficient ignored"),
    entry("bbox_loss_coefficient", 1.0, "huggingface/transformers#38559", (*DETR, *FOCAL)),
    entry("giou_loss_coefficient", 1.0, "huggingface/transformers#38559", (*DETR, *FOCAL)),
    entry("weight_loss_bbox", 1.0, "huggingface/transformers#38559", LAYERED),
    entry("class_cost", 5.0, "huggingface/transformers#38559", (*DETR, *FOCAL)),
    Mistake(
        "no auxiliary loss of layers",
        "huggingface/transformers#26087",
        DETR,
        stepped(Head, config=lambda self, config: config | {"auxiliary_loss": False}),
        "the auxiliary loss is left out",
        has_layers,
        "where other layers have a loss",
    ),
    Mistake(
        "α of a head swapped",
        "unsky/focal-loss#9",
        (*FOCAL, "rt_detr_object_detection"),
        stepped(Head, config=swapped_alpha),
        "α is swapped",
    ),
    Mistake(
        "num_boxes of a head",
        "facebookresearch/detr#267",
        (*DETR, *FOCAL, *LAYERED),
        stepped(Head, parameters=without_number),
        "num_boxes is ignored",
        has("num_boxes"),
        "where num_boxes is given",
    ),
    Mistake(
        "num_boxes below 1",
        "facebookresearch/detr#299",
        DETR,
        lambda function: Unclamped(function),
        "num_boxes is not at least 1",
        lambda case: case.parameters.get("num_boxes", 1.0) < 1,
        "where num_boxes is below 1",
    ),
    Mistake(
        "upstream of a head ignored",
        "pytorch/pytorch#11750",
        (*DETR, *FOCAL, *LAYERED),
        stepped(Head, upstream=lambda self, cotangent, like: np.ones(())),
        "upstream gradient ignored",
    ),
]

MISTAKES: tuple[Mistake, ...] = (
    *SOFTMAX_MISTAKES,
    *LABEL_MISTAKES,
    *UPSTREAM_MISTAKES,
    *ELEMENT_MISTAKES,
    *REGION_MISTAKES,
    *HEAD_MISTAKES,
)
