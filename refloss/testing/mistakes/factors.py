"""Constant factors by which losses and gradients are usually off, and what they come from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from refloss.cases.source import is_one_number
from refloss.registry import FUNCTIONS
from refloss.testing.mistakes import alterations
from refloss.testing.mistakes.guess import COMMON, POSSIBLE, SELDOM, UPSTREAM, USUAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case

WRONG_SIGN = "with the wrong sign"
NUM_BOXES = "num_boxes is ignored"


class Factor(NamedTuple):
    """A factor, the mistake that it comes from, the same with a case's numbers, and how usual that is.

    is_certain: whether a single number off by it says enough, because the factor is one of a few that a case has.
    """

    value: float
    mistake: str
    detail: str
    prior: float
    is_certain: bool = False


def named_factors(case: Case, tensor: str) -> Iterator[Factor]:
    """Factors of a tensor, the likelier first; each also with the wrong sign."""
    plain = [factor for factor in _plain_factors(case, tensor) if math.isfinite(factor.value)]
    for factor in (*plain, *_wrong_signs(plain)):
        if factor.value not in {0.0, 1.0}:
            yield factor


def _wrong_signs(plain: list[Factor]) -> Iterator[Factor]:
    for factor in (each for each in plain if not math.isclose(abs(each.value), 1.0, rel_tol=1e-2)):
        words = f"{factor.mistake}, {WRONG_SIGN}", f"{factor.detail}, {WRONG_SIGN}"
        yield factor._replace(value=-factor.value, mistake=words[0], detail=words[1], prior=factor.prior / 2)


def _plain_factors(case: Case, tensor: str) -> Iterator[Factor]:
    yield Factor(-1.0, "a wrong sign", "a wrong sign", COMMON)
    yield from _of_upstream(case, tensor)
    yield from _of_means(case, tensor)
    for value, words in _counts(case, tensor):
        if value > 1:
            yield Factor(value, f"multiplied by {words}", words, POSSIBLE)
            yield Factor(1 / value, f"divided by {words}", f"1 / {words}", POSSIBLE)
    labels = alterations.labels(case, tensor)
    if labels is not None and labels.classes > 1:
        classes = labels.classes
        yield Factor(classes / (classes - 1), "K / (K − 1)", f"K / (K − 1) of {classes} classes", SELDOM)
        yield Factor((classes - 1) / classes, "(K − 1) / K", f"(K − 1) / K of {classes} classes", SELDOM)
    yield Factor(1 / math.log(2), "logarithms to base 2", "logarithms to base 2", USUAL)
    yield Factor(math.log(2), "logarithms to base 2", "logarithms to base 2", POSSIBLE)


def _of_upstream(case: Case, tensor: str) -> Iterator[Factor]:
    if not is_one_number(case.grad_output) or not float(case.grad_output):
        return
    c = float(case.grad_output)
    if tensor.startswith("grad."):
        yield Factor(1 / c, "upstream gradient ignored", f"upstream gradient ({c:g}) ignored", UPSTREAM, True)
        yield Factor(c, "upstream gradient applied twice", f"upstream gradient ({c:g}) applied twice", 0.7, True)
    else:
        words = "the loss is multiplied by the upstream gradient"
        yield Factor(c, words, f"multiplied by the upstream gradient ({c:g})", USUAL)


def _of_means(case: Case, tensor: str) -> Iterator[Factor]:
    """A sum for a mean, a mean for a sum, or a mean over something else."""
    labels, divisor = alterations.labels(case, tensor), alterations.divisor(case, tensor)
    if labels is not None and "weight" in case.inputs and divisor is not None and labels.counted:
        words = f"a mean over the rows that count ({labels.counted}) instead of their weights"
        yield Factor(divisor.right / labels.counted, "a mean over rows instead of their weights", words, USUAL)
    if divisor is not None and divisor.right:
        right = f"{divisor.what} ({divisor.right:g})"
        yield Factor(divisor.right, "a sum for a mean", f"a sum for a mean over {right}", COMMON, True)
        usual = "the rows that count" if labels is not None else divisor.what
        for count, what in ((divisor.all, divisor.all_what), *_counts(case, tensor)):
            if count:
                words = f"a mean over {what} ({count:g}) instead of {right}"
                name = f"a mean over {what} instead of {usual}"
                if case.parameters.get("reduction") == "batchmean":
                    name = "batchmean is a mean over elements" if what == divisor.all_what else name
                yield Factor(divisor.right / count, name, words, USUAL)
    elif case.parameters.get("reduction") == "sum":
        for count, what in _counts(case, tensor):
            if count:
                words = f"a mean over {what} ({count:g}) for a sum"
                yield Factor(1 / count, f"a mean over {what} for a sum", words, USUAL)
    boxes = case.parameters.get("num_boxes")
    if boxes:
        yield Factor(float(boxes), NUM_BOXES, f"num_boxes ({boxes:g}) ignored", COMMON, True)


def _counts(case: Case, tensor: str) -> list[tuple[float, str]]:
    """What there is to count in a case."""
    name = tensor.removeprefix("grad.")
    first = case.inputs.get(name, case.inputs.get(FUNCTIONS[case.function].differentiable[0]))
    shape = () if first is None else first.shape
    labels = alterations.labels(case, tensor)
    counts: list[tuple[float, str]] = []
    if shape:
        counts.append((shape[0], "the batch size"))
    if labels is not None:
        counts += [(labels.counted, "the number of rows that count"), (labels.values.size, "all rows")]
    objects = [value for key, value in case.inputs.items() if "class_labels" in key.split(".")]
    if objects:
        counts.append((sum(len(own) for own in objects), "the number of objects"))
    if labels is None or labels.values.size != math.prod(shape[:-1]):
        counts.append((math.prod(shape[:-1]), "the number of rows"))
    counts.append((math.prod(shape), "the number of elements"))
    counts += [(length, f"the length of axis {axis}") for axis, length in enumerate(shape) if axis]
    items = case.parameters.get("num_items_in_batch")
    return counts if items is None else [*counts, (float(items), "num_items_in_batch")]
