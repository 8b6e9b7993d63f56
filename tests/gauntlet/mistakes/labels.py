"""Which rows count, where labels stand, what a mean divides by, and what targets are smoothed to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.gauntlet.honest import HONEST, IGNORING, LABELLED, ROWS, TOKENS
from tests.gauntlet.kernels import Kernel, with_steps
from tests.gauntlet.mistakes.mistake import Mistake, class_count, has, ignored, labels_of, soft, stepped
from tests.gauntlet.rows import CrossEntropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from tests.gauntlet.rows import Rows


def default_of(function: str) -> int:
    """What ignore_index is where nobody says."""
    return 255 if function == "semantic_segmentation" else -100


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


def in_32_bits(self: Any, rows: Rows) -> np.ndarray:
    if rows.labels is None:
        return np.ones(len(rows.x), bool)
    return rows.labels.astype(np.int32) != np.array(rows.ignore_index).astype(np.int32)


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
        if not is_mean(rows) or len(rows.x) < 3 or not counts.any():
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
        stepped(divisor=mean_of_means(lambda rows: 3)),
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
        "a mean over all rows instead of the rows that count",
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
    ignored("num_items_in_batch", "huggingface/transformers#46731", LABELLED),
]
