"""The softmax of a row, and sums over its classes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from tests.gauntlet.honest import SOFTMAX
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, class_count, labels_of, logits_of, soft, stepped
from tests.gauntlet.rows import CrossEntropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.cases.source import Case
    from tests.gauntlet.rows import Rows


BLOCK, VECTOR = 1024, 8  # classes that a kernel takes at once

_TINY = np.float32(np.finfo(np.float32).tiny)


def more_classes(count: int) -> Callable[[Case], bool]:
    """Whether a row has more classes than so many."""
    return lambda case: class_count(case) > count


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
    """Of two shards, the first is the longer."""
    half = (rows.x.shape[1] + 1) // 2
    return np.where(labels < half, half, 0)[:, None]


def of_every_shard(self: CrossEntropy, rows: Rows, q: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """The label's logit is the sum of what each of two shards finds for it."""
    losses = CrossEntropy.likelihood(self, rows, q, log_p)
    if rows.targets is not None or rows.x.shape[1] < 2:
        return losses
    labels = self.picked(rows)
    found = np.take_along_axis(rows.x, first_class_of_other_shard(rows, labels), 1)
    return losses - rows.of_classes[labels] * found[:, 0]


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
        why="float64 holds probabilities down to e^−745",
        dtypes=("float32", "bfloat16", "float16"),
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
        tuple(name for name in SOFTMAX if name != "semantic_segmentation"),
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
        tuple(name for name in SOFTMAX if name != "semantic_segmentation"),
        stepped(picked=in_16_bits),
        "an index of 16 bits wraps",
        lambda case: bool((labels_of(case) >= 2**15).any()) and class_count(case) > 2**15,
        "where a label is beyond 16 bits; rows of so many classes come in two dtypes, for they are large",
        dtypes=("float32", "bfloat16"),
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
