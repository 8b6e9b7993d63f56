"""Cases of the elementwise losses, nll, and the heads for classification, question answering and segmentation."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PretrainedConfig

from conformance.cases import Array, Case, Layout
from conformance.heads import SEQUENCE_CLASSIFICATION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REDUCTIONS = ("mean", "sum", "none")
SHAPE = (4, 3, 5)
SCALAR_COTANGENT = -3.5
KINKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("mse", {}),
    ("l1", {}),
    ("smooth_l1", {"beta": 0.5}),
    ("smooth_l1", {"beta": 0.0}),
    ("huber", {"delta": 0.5}),
)
FIRST_ARGUMENT = {"bce_with_logits": "logits"}  # "input" elsewhere
VARIANTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("mse", {}),
    ("l1", {}),
    ("smooth_l1", {}),
    ("smooth_l1", {"beta": 0.0}),
    ("smooth_l1", {"beta": 0.3}),
    ("huber", {}),
    ("huber", {"delta": 0.3}),
    ("huber", {"delta": 2.5}),
    ("bce", {}),
    ("bce_with_logits", {}),
    ("kl_div", {}),
    ("kl_div", {"log_target": True}),
)


def _inputs(random: np.random.Generator, loss: str, shape: tuple[int, ...], *, log_target: bool = False) -> list[Array]:
    """A loss's two arguments, in the range that they are meant for."""
    x, t = np.asarray(2 * random.standard_normal(shape)), np.asarray(random.standard_normal(shape))
    if loss.startswith("bce") and not shape:  # a gradient that is not the small rest of large terms
        return [np.array(0.9 if loss == "bce" else 2.0), np.array(0.125)]
    if loss == "kl_div" and not shape:
        return [np.array(-2.0), np.array(-0.5 if log_target else 0.75)]
    if loss == "bce":
        return [np.asarray(random.uniform(0.02, 0.98, shape)), np.asarray(random.random(shape))]
    if loss == "bce_with_logits":
        return [x, np.asarray(random.random(shape))]
    if loss == "kl_div":
        return [-np.abs(x), -np.abs(t) if log_target else np.asarray(random.uniform(0.05, 1.0, shape))]
    return [x, t]


def _case(
    random: np.random.Generator,
    loss: str,
    name: str,
    inputs: list[Array],
    *,
    extra: Any = None,  # further inputs by name
    layout: Layout = "contiguous",
    degenerate: bool = False,
    **options: Any,
) -> Case:
    first = FIRST_ARGUMENT.get(loss, "input")
    cotangent: Any = SCALAR_COTANGENT
    if options.get("reduction") == "none":
        shape = inputs[0].shape if loss != "nll" else inputs[1].shape
        cotangent = np.asarray(random.standard_normal(shape))
    arguments = {first: inputs[0], "target": inputs[1], **(extra or {})}
    return Case(f"{loss}-{name}", loss, arguments, options, cotangent, layout, degenerate)


def _elementwise_shapes() -> Iterator[Case]:
    """Every loss and option with every reduction: without axes, empty, and in every layout."""
    random = np.random.default_rng(21)
    for loss, options in VARIANTS:
        words = "".join(f"-{name}_{value}" for name, value in options.items())
        log_target = bool(options.get("log_target"))
        for reduction in (*REDUCTIONS, *(["batchmean"] if loss == "kl_div" else [])):
            chosen = {**options, "reduction": reduction}
            number = _inputs(random, loss, (), log_target=log_target)
            yield _case(random, loss, f"number-{reduction}{words}", number, **chosen)
            empty = _inputs(random, loss, (0, 3), log_target=log_target)
            yield _case(random, loss, f"empty-{reduction}{words}", empty, degenerate=True, **chosen)
        layouts: tuple[Layout, ...] = ("strided", "transposed")
        for layout in layouts:
            inputs = _inputs(random, loss, SHAPE, log_target=log_target)
            yield _case(random, loss, f"{layout}{words}", inputs, layout=layout, reduction="none", **options)


def _weights() -> Iterator[Case]:
    """Weights of the input's shape, and where torch broadcasts them, of others."""
    random = np.random.default_rng(22)
    for loss, reduction in product(("mse", "l1", "huber", "bce", "bce_with_logits"), REDUCTIONS):
        shapes = [SHAPE] if loss in {"mse", "l1", "huber"} else [SHAPE, (5,), (4, 1, 1), (3, 1), ()]
        for shape in shapes:
            inputs = _inputs(random, loss, SHAPE)
            weight = np.asarray(random.uniform(0.2, 2.0, shape))
            name = f"weight_{'x'.join(map(str, shape))}-{reduction}"
            yield _case(random, loss, name, inputs, extra={"weight": weight}, reduction=reduction)
    for shape, reduction in product((SHAPE, (5,), (3, 1), ()), REDUCTIONS):
        factor = {"pos_weight": np.asarray(random.uniform(0.2, 5.0, shape))}
        both = {**factor, "weight": np.asarray(random.uniform(0.2, 2.0, (3, 5)))}
        name = f"{'x'.join(map(str, shape))}-{reduction}"
        for word, extra in (("pos_weight", factor), ("both_weights", both)):
            inputs = _inputs(random, "bce_with_logits", SHAPE)
            yield _case(random, "bce_with_logits", f"{word}_{name}", inputs, extra=extra, reduction=reduction)


def _elementwise_edges() -> Iterator[Case]:
    """Kinks, ends of the range, and what is not finite; numbers that every dtype holds exactly."""
    random = np.random.default_rng(23)
    t = np.array([0.25, -1.0, 0.5, 3.0, -2.0, 0.0, 1.0])
    d = np.array([0.0, 0.5, -0.5, 0.25, -0.75, 2.0, 0.0])
    for loss, options in KINKED:
        words = "".join(f"-{name}_{value}" for name, value in options.items())
        yield _case(random, loss, f"kinks{words}", [t + d, t], reduction="none", **options)
        unbounded = [np.array([np.inf, -np.inf, 1.0, 2.0]), np.array([0.0, 1.0, -np.inf, 0.5])]
        yield _case(random, loss, f"infinite{words}", unbounded, reduction="none", degenerate=True, **options)
        if options.get("beta") != 0.0:
            undefined = [np.array([np.nan, np.inf, 1.0]), np.array([0.0, np.inf, np.nan])]
            yield _case(random, loss, f"undefined{words}", undefined, reduction="none", degenerate=True, **options)
    tiny = [np.array([2.0**-30, 1.0 - 2.0**-7, 2.0**-12]), np.array([0.5, 0.75, 1.0])]
    yield _case(random, "bce", "near_the_ends", tiny, reduction="sum")
    far = [np.array([80.0, -80.0, 1000.0, -1000.0, 30.0]), np.array([0.0, 1.0, 0.25, 0.5, 1.0])]
    yield _case(random, "bce_with_logits", "far", far, reduction="none")
    yield _case(random, "bce_with_logits", "far-mean", far)
    infinite = [np.array([np.inf, np.inf, -np.inf, np.inf, np.nan]), np.array([0.0, 1.0, 0.0, 0.5, 1.0])]
    yield _case(random, "bce_with_logits", "infinite", infinite, reduction="none", degenerate=True)
    beyond = [np.array([0.5, -2.0, 1.5]), np.array([-0.5, 1.5, 3.0])]
    yield _case(random, "bce_with_logits", "targets_outside", beyond, reduction="none")
    absent = [np.array([-0.5, -2.0, 0.0, -np.inf]), np.array([0.0, 0.25, 0.0, 0.5])]
    yield _case(random, "kl_div", "zero_target", absent, reduction="none", degenerate=True)
    yield _case(random, "kl_div", "zero_target-mean", [values[:3] for values in absent], degenerate=True)
    logs = [np.array([-0.5, -2.0, -3.0]), np.array([-30.0, -np.inf, 0.0])]
    yield _case(random, "kl_div", "log_target-tiny", logs, reduction="none", log_target=True, degenerate=True)


def _nll() -> Iterator[Case]:
    random = np.random.default_rng(24)
    x, labels = -random.random((4, 3, 5)), random.integers(0, 3, (4, 5))
    layouts: tuple[Layout, ...] = ("strided", "transposed")
    for layout in layouts:
        yield _case(random, "nll", layout, [x, labels], layout=layout, reduction="none")
    for reduction in REDUCTIONS:
        nothing = np.full((4, 5), -100)
        yield _case(random, "nll", f"all_ignored-{reduction}", [x, nothing], reduction=reduction, degenerate=True)
        yield _case(random, "nll", f"empty-{reduction}", [x[:0], labels[:0]], reduction=reduction, degenerate=True)


def pretrained(num_labels: int, problem_type: str | None = None) -> Any:
    """A configuration of transformers."""
    settings: dict[str, Any] = {"num_labels": num_labels, "problem_type": problem_type}
    return PretrainedConfig(**settings)


def _head(
    key: str,
    name: str,
    inputs: Mapping[str, Array],
    *,
    layout: Layout = "contiguous",
    degenerate: bool = False,
    **options: Any,
) -> Case:
    return Case(f"{key}-{name}", key, inputs, options, 2.75, layout, degenerate)


def _sequences() -> Iterator[Case]:
    """Every problem type, said and inferred, by every kind of configuration, for every key."""
    random = np.random.default_rng(25)
    logits = 2 * random.standard_normal((6, 3))
    classes, values = random.integers(0, 3, 6), random.standard_normal((6, 3))
    several = (random.random((6, 3)) < 0.5).astype(float)
    meant = (
        ("single_label_classification", classes),
        ("multi_label_classification", several),
        ("regression", values),
    )
    for key, (kind, labels) in product(SEQUENCE_CLASSIFICATION, meant):
        for said in (kind, None) if kind != "regression" else (kind,):
            config = SimpleNamespace(num_labels=3, problem_type=said)
            inputs = {"labels": labels, "pooled_logits": logits}
            yield _head(key, f"{kind}-{'said' if said else 'inferred'}", inputs, config=config)
    key = SEQUENCE_CLASSIFICATION[0]
    for kind, labels in meant:
        inputs = {"labels": labels, "pooled_logits": logits}
        yield _head(key, f"{kind}-mapping", inputs, config={"num_labels": 3, "problem_type": kind})
        real = pretrained(3, kind)
        yield _head(key, f"{kind}-pretrained", inputs, config=real)
        yield _head(key, f"{kind}-strided", inputs, config=real, layout="strided")
        yield _head(key, f"{kind}-keywords", inputs, config=real, label_smoothing=0.3, unknown=1)
    yield from _sequences_of_one_label(random)
    single = {"labels": classes, "pooled_logits": logits}
    three = pretrained(3)
    yield _head(key, "column_of_labels", {**single, "labels": classes[:, None]}, config=three)
    yield _head(key, "items", single, config=three, num_items_in_batch=13)
    yield _head(key, "items_tensor", single, config=three, num_items_in_batch=np.array(12.7, np.float32))
    yield _head(key, "ignored", {**single, "labels": np.array([0, -100, 2, 1, -100, 0])}, config=three)
    yield _head(key, "ignored_class", single, config=three, ignore_index=int(classes[0]))
    nothing = {**single, "labels": np.full(6, -100)}
    yield _head(key, "all_ignored", nothing, config=three, degenerate=True)


def _sequences_of_one_label(random: np.random.Generator) -> Iterator[Case]:
    """One label is a regression on squeezed sides, be the batch one example or many."""
    key = SEQUENCE_CLASSIFICATION[0]
    for batch in (1, 4):
        logits = random.standard_normal((batch, 1))
        for name, shape in (("flat", (batch,)), ("column", (batch, 1))):
            inputs = {"labels": random.standard_normal(shape), "pooled_logits": logits}
            for kind in ("regression", None):
                config = pretrained(1, kind)
                yield _head(key, f"one_label-{name}-{batch}-{kind}", inputs, config=config)
        inputs = {"labels": random.standard_normal((batch, 1)), "pooled_logits": logits}
        several = {"num_labels": 1, "problem_type": "multi_label_classification"}
        yield _head(key, f"one_label-several-{batch}", inputs, config=several)


def _tokens() -> Iterator[Case]:
    random = np.random.default_rng(26)
    key = "ForTokenClassification"
    config = pretrained(4)
    inputs = {"logits": 3 * random.standard_normal((3, 5, 4)), "labels": random.integers(0, 4, (3, 5))}
    hidden = {**inputs, "labels": np.where(np.arange(5) > 2, -100, inputs["labels"])}
    yield _head(key, "plain", inputs, config=config)
    yield _head(key, "mapping", inputs, config={"num_labels": 4})
    yield _head(key, "strided", inputs, config=config, layout="strided")
    yield _head(key, "ignored", hidden, config=config)
    yield _head(key, "ignored_class", inputs, config=config, ignore_index=2)
    yield _head(key, "items", hidden, config=config, num_items_in_batch=11)
    yield _head(key, "items_tensor", hidden, config=config, num_items_in_batch=np.array(12.7, np.float32))
    yield _head(key, "keywords", inputs, config=config, label_smoothing=0.3)
    yield _head(key, "all_ignored", {**inputs, "labels": np.full((3, 5), -100)}, config=config, degenerate=True)


def _questions() -> Iterator[Case]:
    """Positions inside, before and beyond the sequence; [B] and [B, 1]."""
    random = np.random.default_rng(27)
    key = "ForQuestionAnswering"
    logits = {name: 3 * random.standard_normal((4, 7)) for name in ("start_logits", "end_logits")}
    spans = {
        "inside": ([0, 2, 6, 3], [1, 2, 6, 5]),
        "outside": ([0, 7, 6, 100], [7, 2, 30, 5]),
        "negative": ([-1, 2, -100, 3], [1, -5, 6, 5]),
    }
    for name, (start, end) in spans.items():
        inputs = {**logits, "start_positions": np.array(start), "end_positions": np.array(end)}
        column = {**inputs, **{side: inputs[side][:, None] for side in ("start_positions", "end_positions")}}
        yield _head(key, name, inputs)
        yield _head(key, f"{name}-column", column)
        yield _head(key, f"{name}-items", inputs, num_items_in_batch=5)
        yield _head(key, f"{name}-items_tensor", inputs, num_items_in_batch=np.array(2.5, np.float32))
        yield _head(key, f"{name}-strided", inputs, layout="strided")
    one = {name: values[:1] for name, values in logits.items()}
    yield _head(key, "one-column", {**one, "start_positions": np.array([[2]]), "end_positions": np.array([[4]])})
    beyond = {"start_positions": np.full(4, 9), "end_positions": np.full(4, 7)}
    yield _head(key, "all_outside", {**logits, **beyond}, degenerate=True)


def _segmentations() -> Iterator[Case]:
    """Up and down, odd sizes, one pixel, auxiliary logits of a size of their own."""
    random = np.random.default_rng(28)
    key = "ForSemanticSegmentation"
    sizes = {
        "same": ((2, 3, 5, 4), (5, 4)),
        "four_times": ((1, 3, 4, 4), (16, 16)),
        "odd": ((2, 3, 4, 5), (9, 7)),
        "down": ((2, 3, 8, 9), (3, 4)),
        "up_and_down": ((1, 4, 3, 11), (7, 5)),
        "from_one_pixel": ((1, 4, 1, 1), (5, 3)),
        "to_one_pixel": ((1, 4, 4, 3), (1, 1)),
        "one_row": ((2, 3, 1, 6), (4, 13)),
    }
    for name, (shape, size) in sizes.items():
        labels = np.asarray(random.integers(0, shape[1], (shape[0], *size)))
        hidden = np.where(random.random(labels.shape) < 0.3, 255, labels)
        hidden.flat[0] = 1
        inputs = {"logits": 2 * random.standard_normal(shape), "labels": hidden}
        auxiliary = {**inputs, "auxiliary_logits": 2 * random.standard_normal((*shape[:2], 3, 2))}
        yield _head(key, name, inputs)
        yield _head(key, f"{name}-ignored_class", {**inputs, "labels": labels}, ignore_index=0)
        yield _head(key, f"{name}-auxiliary", auxiliary)
        yield _head(key, f"{name}-auxiliary-weight", auxiliary, auxiliary_loss_weight=0.7, num_items_in_batch=9)
        yield _head(key, f"{name}-items", inputs, num_items_in_batch=np.array(12.7, np.float32))
    layouts: tuple[Layout, ...] = ("strided", "transposed")
    plain = {"logits": random.standard_normal((2, 3, 4, 5)), "labels": random.integers(0, 3, (2, 7, 9))}
    for layout in layouts:
        yield _head(key, layout, plain, layout=layout, unknown=1)
    yield _head(key, "all_ignored", {**plain, "labels": np.full((2, 7, 9), 255)}, degenerate=True)


CASES: tuple[Case, ...] = (
    *_elementwise_shapes(),
    *_weights(),
    *_elementwise_edges(),
    *_nll(),
    *_sequences(),
    *_tokens(),
    *_questions(),
    *_segmentations(),
)


def _ends() -> Iterator[Case]:
    """Certain probabilities, where torch's float64 is not the formula either (conformance/ledger)."""
    random = np.random.default_rng(29)
    corners = [np.array(values) for values in zip(*product((0.0, 0.5, 1.0), (0.0, 0.25, 1.0)), strict=True)]
    for reduction in REDUCTIONS:
        yield _case(random, "bce", f"corners-{reduction}", corners, reduction=reduction)


ENDS: tuple[Case, ...] = tuple(_ends())
