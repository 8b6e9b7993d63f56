"""Heads whose loss is a cross-entropy of rows, or one of the losses of elements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gmpy2
import numpy as np

import refloss
from refloss.heads.sequence_classification import ProblemType
from tests.mpfr import definitions, elements
from tests.mpfr.elements import LOSSES, ElementLoss, Sample
from tests.mpfr.rounding import DTYPES, PRECISION, Comparison, exact
from tests.mpfr.rows import IGNORED, LABELS, Draw, Rows, compare, describing, truth

# What divides the sum where a head is not asked for the mean.
ITEMS = 7.3


def draws() -> dict[str, Draw]:
    """The kinds of labels of cross-entropy, without what no head has: class weights, reduction "none"."""
    return {kind: functools.partial(_for_heads, draw) for kind, draw in LABELS.items() if kind != "weights"}


def _for_heads(draw: Draw, generator: np.random.Generator, size: int) -> Iterator[Rows]:
    for rows in draw(generator, size):
        cotangent = float(np.reshape(rows.cotangent, -1)[0])
        items = ITEMS if rows.reduction == "sum" else None
        yield rows._replace(cotangent=cotangent, reduction="sum" if items else "mean", items=items)


def _of_tokens(function: str, shape: Callable[[Rows], tuple[int, ...]], rows: Rows, **own: Any) -> Iterator[Comparison]:
    def call(**options: Any) -> Any:
        keywords = own | options | {"grad_output": rows.cotangent, "num_items_in_batch": rows.items}
        logits, labels = rows.logits.reshape(*shape(rows), -1), rows.target.reshape(shape(rows))
        return getattr(refloss, function)(logits, labels, **keywords)

    return compare(call, "logits", rows)


def _sequence(rows: Rows) -> tuple[int, ...]:
    return 1, len(rows.logits)


def masked_lm(rows: Rows) -> Iterator[Comparison]:
    """One label for each position."""
    return _of_tokens("masked_lm", _sequence, rows)


def token_classification(rows: Rows) -> Iterator[Comparison]:
    """The same."""
    return _of_tokens("token_classification", _sequence, rows)


def causal_lm(rows: Rows) -> Iterator[Comparison]:
    """A position's label is the next token; the last position has none."""
    target = rows.target.copy()
    target[-1] = IGNORED
    if not (target != IGNORED).any():
        return
    rows = rows._replace(target=target)
    tokens = np.concatenate([[0], target[:-1]])

    def call(**options: Any) -> Any:
        keywords = options | {"grad_output": rows.cotangent, "num_items_in_batch": rows.items}
        return refloss.causal_lm(rows.logits[None], tokens[None], **keywords)

    yield from compare(call, "logits", rows)


def question_answering(rows: Rows) -> Iterator[Comparison]:
    """Half of two cross-entropies over positions; S, beyond the last, is ignored."""
    half = len(rows.logits) // 2
    positions = rows.logits.shape[1]
    if half == 0 or not all((part != IGNORED).any() for part in (rows.target[:half], rows.target[half:])):
        return
    sides = {"start": rows, "end": rows}
    sides["start"] = rows._replace(logits=rows.logits[:half], target=rows.target[:half], cotangent=rows.cotangent / 2)
    sides["end"] = rows._replace(
        logits=rows.logits[half : 2 * half], target=rows.target[half : 2 * half], cotangent=rows.cotangent / 2
    )
    places = [np.where(side.target == IGNORED, positions, side.target) for side in sides.values()]
    with gmpy2.context(precision=PRECISION):
        true = {name: truth(side) for name, side in sides.items()}
        options = {"grad_output": rows.cotangent, "num_items_in_batch": rows.items}
        for format_name, dtype in DTYPES.items():
            result: Any = refloss.question_answering(
                sides["start"].logits, sides["end"].logits, *places, **options, grad_dtype=dtype
            )
            for name, side in sides.items():
                got = result.grads[f"{name}_logits"]
                slopes = exact(true[name].gradient, got.shape)
                yield Comparison(f"{name}_logits", format_name, got, slopes, describing(side))
        loss = (true["start"].loss + true["end"].loss) / 2
        yield Comparison("loss", "float64", np.asarray([result.loss]), exact([loss], (1,)), lambda _: "")


def one_class_each(rows: Rows) -> Iterator[Comparison]:
    """sequence_classification with a label for each example."""

    def call(**options: Any) -> Any:
        keywords = options | {"grad_output": rows.cotangent, "num_items_in_batch": rows.items}
        return refloss.sequence_classification(
            rows.target, rows.logits, problem_type="single_label_classification", **keywords
        )

    return compare(call, "pooled_logits", rows)


def _elementwise_head(problem: ProblemType, columns: int) -> Callable[..., Any]:
    def call(*, pooled_logits: Any, labels: Any, reduction: str, **options: Any) -> Any:
        assert reduction == "mean"
        logits = pooled_logits.reshape(-1, columns)
        return refloss.sequence_classification(labels.reshape(-1, columns), logits, problem_type=problem, **options)

    return call


SEQUENCE_LOSSES = {
    "regression": ElementLoss(
        "sequence_classification",
        lambda _: definitions.mse,
        draw=LOSSES["mse"].draw,
        close=LOSSES["mse"].close,
        arguments=("pooled_logits", "labels"),
        target_has_gradient=False,
        call=_elementwise_head("regression", 1),
    ),
    "several labels": ElementLoss(
        "sequence_classification",
        lambda _: definitions.bce_with_logits,
        draw=LOSSES["bce_with_logits"].draw,
        close=LOSSES["bce_with_logits"].close,
        crossing=LOSSES["bce_with_logits"].crossing,
        arguments=("pooled_logits", "labels"),
        target_has_gradient=False,
        unit_interval=(False, True),
        call=_elementwise_head("multi_label_classification", 1),
    ),
}


def mean_only(loss: ElementLoss, sample: Sample) -> Iterator[Comparison]:
    """An elementwise head's loss, which is always the mean."""
    cotangent = float(np.reshape(sample.cotangent, -1)[0])
    return elements.compare(loss, sample._replace(reduction="mean", cotangent=cotangent))


HEADS: dict[str, Callable[[Rows], Iterator[Comparison]]] = {
    "causal_lm": causal_lm,
    "masked_lm": masked_lm,
    "token_classification": token_classification,
    "question_answering": question_answering,
}
