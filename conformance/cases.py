"""What is compared. Inputs are float64 here; a run rounds them to its dtype and gives both sides the very same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Array = np.ndarray
Layout = Literal["contiguous", "strided", "transposed"]

CROSS_ENTROPY = "cross_entropy"
IGNORED = -100


class Case(NamedTuple):
    """One call of one loss, with a cotangent that a loss cannot ignore unnoticed."""

    id: str
    loss: str  # CROSS_ENTROPY, or a key of LOSS_MAPPING
    inputs: Mapping[str, Array]  # by argument name
    options: Mapping[str, Any]
    grad_output: Any  # never 1
    layout: Layout = "contiguous"
    degenerate: bool = False  # the right gradient is 0 or NaN everywhere, so that no wrong one can be told from it


def _logits(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return 3.0 * random.standard_normal(shape)


def _labels(random: np.random.Generator, shape: tuple[int, ...], classes: int, ignored: float = 0.0) -> Array:
    """Class labels; a share of them is IGNORED, though never the first, so that some row counts."""
    labels = np.asarray(random.integers(0, classes, shape))
    hidden = np.asarray(random.random(shape) < ignored)
    hidden[(0,) * labels.ndim] = False
    return np.where(hidden, IGNORED, labels)


def _probabilities(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    mass = random.exponential(size=shape)
    return np.asarray(mass / mass.sum(axis=min(1, len(shape) - 1), keepdims=True))


def _cotangent(random: np.random.Generator, shape: tuple[int, ...], reduction: str) -> Any:
    """Signed and different for every row where the loss is an array, -3.5 where it is a number."""
    return random.standard_normal(shape) if reduction == "none" else -3.5


def _row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def _cross_entropy(
    name: str,
    random: np.random.Generator,
    logits: Array,
    target: Array,
    *,
    weighted: bool = False,
    layout: Layout = "contiguous",
    degenerate: bool = False,
    **options: Any,
) -> Case:
    inputs = {"logits": logits, "target": target}
    if weighted:
        inputs["weight"] = random.uniform(0.2, 2.0, size=(logits.shape[min(1, logits.ndim - 1)],))
    cotangent = _cotangent(random, _row_shape(logits.shape), options.get("reduction", "mean"))
    return Case(f"cross_entropy-{name}", CROSS_ENTROPY, inputs, options, cotangent, layout, degenerate)


def _shapes_and_layouts() -> Iterator[Case]:
    random = np.random.default_rng(3)
    for reduction in ("mean", "sum", "none"):
        row = _logits(random, (5,))
        yield _cross_entropy(f"one_row-{reduction}", random, row, np.array(3), reduction=reduction, weighted=True)
        yield _cross_entropy(
            f"one_row-probabilities-{reduction}", random, row, _probabilities(random, (5,)), reduction=reduction
        )
    layouts: tuple[Layout, ...] = ("strided", "transposed")
    for layout in layouts:
        shape = (3, 5, 4)
        labels = _labels(random, (3, 4), 5, 0.3)
        logits = _logits(random, shape)
        yield _cross_entropy(f"{layout}-labels", random, logits, labels, layout=layout, weighted=True)
        yield _cross_entropy(
            f"{layout}-probabilities", random, logits, _probabilities(random, shape), layout=layout, reduction="none"
        )
    wide = _logits(random, (4, 5000))
    yield _cross_entropy("many_classes", random, wide, _labels(random, (4,), 5000), reduction="none")
    yield _cross_entropy("one_class", random, _logits(random, (4, 1)), np.zeros(4, np.int64), degenerate=True)


def _cross_entropy_edges() -> Iterator[Case]:
    random = np.random.default_rng(4)
    logits = _logits(random, (6, 5))
    labels = np.array([0, 1, 2, 3, 4, 0])
    nothing = np.full(6, IGNORED)
    for reduction in ("mean", "sum", "none"):
        options: dict[str, Any] = {"reduction": reduction}
        yield _cross_entropy(f"all_ignored-{reduction}", random, logits, nothing, degenerate=True, **options)
        yield _cross_entropy(f"empty-{reduction}", random, logits[:0], labels[:0], degenerate=True, **options)
        yield _cross_entropy(
            f"empty-probabilities-{reduction}", random, logits[:0], np.zeros((0, 5)), degenerate=True, **options
        )
        yield _cross_entropy(f"ignored_class-{reduction}", random, logits, labels, ignore_index=0, **options)
    yield _cross_entropy("all_ignored-smoothing", random, logits, nothing, degenerate=True, label_smoothing=0.1)
    yield _cross_entropy("one_row-ignored", random, logits[0], np.array(IGNORED), degenerate=True)
    yield _cross_entropy("no_positions", random, np.zeros((2, 5, 0)), np.zeros((2, 0), np.int64), degenerate=True)

    masked = logits.copy()
    masked[:, 4] = -np.inf  # a class that is masked out; the label of row 4 is in it
    masked[3, :3] = -np.inf  # a row with nothing but its label
    for smoothing in (0.0, 0.1):
        yield _cross_entropy(
            f"masked_classes-smoothing_{smoothing:g}",
            random,
            masked,
            labels,
            reduction="none",
            label_smoothing=smoothing,
        )
    yield _cross_entropy("masked_classes-mean", random, masked[:4], labels[:4])
    yield _cross_entropy("masked_classes-probabilities", random, masked, _probabilities(random, (6, 5)))

    confident = logits + 40.0 * np.array([1, 1, 1, 0, 0, 0])[:, None] * np.eye(5)[labels]
    yield _cross_entropy("confident", random, confident, labels, reduction="none")
    yield _cross_entropy("confident-smoothing", random, confident, labels, label_smoothing=0.1)
    yield _cross_entropy("confident-probabilities", random, confident, np.eye(5)[labels], reduction="sum")
    yield _cross_entropy("far_from_zero", random, logits + 1000.0, labels, reduction="none")
    # Beyond 2^63 neighbouring float64 are thousands apart; the last row is masked by a large number and by −inf.
    huge = np.array([[1e20, -1.7e20, 0.0], [3.0, -1e30, 1.0], [-1e30, -np.inf, -1e30]])
    yield _cross_entropy("huge", random, huge, np.array([1, 0, 2]), reduction="none")
    absent = _cross_entropy("absent_weights", random, logits, labels, degenerate=True)
    yield absent._replace(inputs={**absent.inputs, "weight": np.zeros(5)})


def _language(
    key: str,
    name: str,
    logits: Array,
    labels: Array,
    *,
    layout: Layout = "contiguous",
    degenerate: bool = False,
    **options: Any,
) -> Case:
    """A case of a transformers loss, called with transformers' keywords."""
    return Case(f"{key}-{name}", key, {"logits": logits, "labels": labels}, options, 2.75, layout, degenerate)


def _token_losses() -> Iterator[Case]:
    """What all language losses share."""
    random = np.random.default_rng(5)
    logits = _logits(random, (2, 7, 11))
    labels = _labels(random, (2, 7), 11, 0.3)
    masked = np.where(np.arange(11) == 5, -np.inf, logits)
    seen = np.where(labels == 5, 6, labels)
    ignored: dict[str, Any] = {"label_smoothing": 0.9, "reduction": "sum", "cache_position": None}
    for key in ("ForCausalLM", "ForConditionalGeneration", "ForMaskedLM"):
        yield _language(key, "plain", logits, labels)
        yield _language(key, "items_integer", logits, labels, num_items_in_batch=13)
        yield _language(key, "items_float", logits, labels, num_items_in_batch=12.7)
        yield _language(key, "items_tensor_integer", logits, labels, num_items_in_batch=np.array(13))
        yield _language(key, "items_tensor_float", logits, labels, num_items_in_batch=np.array(12.7, np.float32))
        yield _language(key, "unknown_keywords", logits, labels, **ignored)
        yield _language(key, "one_sequence", logits[0], labels[0])
        yield _language(key, "ignored_class", logits, labels % 11, ignore_index=3)
        yield _language(key, "vocabulary_size", logits, labels, vocab_size=11)
        yield _language(key, "rows_regrouped", _logits(random, (2, 3, 22)), labels[:, :6], vocab_size=11)
        yield _language(key, "strided", logits, labels, layout="strided")
        yield _language(key, "masked_class", masked, seen)
        answers = labels if key == "ForMaskedLM" else np.roll(labels, -1, axis=-1)
        certain = 40.0 * np.eye(11)[answers % 11] * (np.arange(7) % 2 == 0)[:, None]
        yield _language(key, "confident", logits + certain, labels)
        yield _language(key, "many_classes", _logits(random, (1, 4, 3000)), _labels(random, (1, 4), 3000))
        yield _language(key, "all_ignored", logits, np.full((2, 7), IGNORED), degenerate=True)
        yield _language(
            key, "all_ignored-items", logits, np.full((2, 7), IGNORED), num_items_in_batch=4, degenerate=True
        )
        yield _language(key, "empty", logits[:0], labels[:0], degenerate=True)


def _shifted() -> Iterator[Case]:
    random = np.random.default_rng(6)
    logits = _logits(random, (2, 7, 11))
    labels = _labels(random, (2, 7), 11, 0.3)
    given = _labels(random, (2, 7), 11, 0.3)
    yield _language("ForCausalLM", "shift_labels", logits, labels, shift_labels=given)
    yield _language("ForCausalLM", "shift_labels-items", logits, labels, shift_labels=given, num_items_in_batch=9)
    yield _language("ForCausalLM", "one_token", logits[:, :1], labels[:, :1], degenerate=True)
    codebooks = _logits(random, (2, 3, 4, 11))
    tokens = _labels(random, (2, 3, 4), 11, 0.3)
    yield _language("CsmForConditionalGeneration", "codebooks", codebooks, tokens)
    yield _language("CsmForConditionalGeneration", "codebooks-items", codebooks, tokens, num_items_in_batch=21)
    yield _language("CsmForConditionalGeneration", "plain", logits, labels)


CASES: tuple[Case, ...] = (
    *_shapes_and_layouts(),
    *_cross_entropy_edges(),
    *_token_losses(),
    *_shifted(),
)
