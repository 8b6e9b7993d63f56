"""Constant factors by which losses and gradients are usually off, and what they come from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from refloss.registry import FUNCTIONS
from refloss.testing.mistakes import alterations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.cases.source import Case

WRONG_SIGN = "with the wrong sign"
POWERS_OF_TWO = 24  # a world size, or a loss scale that was not taken out


def named_factors(case: Case, tensor: str) -> Iterator[tuple[float, str]]:
    """Factors of a tensor with words for them, the likelier first; each also with the wrong sign."""
    plain = [pair for pair in _plain_factors(case, tensor) if math.isfinite(pair[0]) and pair[0] not in {0.0, 1.0}]
    yield from plain
    yield from ((-value, f"{words}{', ' if words else ''}{WRONG_SIGN}") for value, words in plain if value != -1.0)


def _plain_factors(case: Case, tensor: str) -> Iterator[tuple[float, str]]:
    yield -1.0, "a wrong sign"
    yield from _of_upstream(case, tensor)
    yield from _of_means(case, tensor)
    for value, words in _counts(case, tensor):
        if value > 1:
            yield value, words
            yield 1 / value, f"1 / {words}"
    labels = alterations.labels(case, tensor)
    if labels is not None and labels.classes > 1:
        yield labels.classes / (labels.classes - 1), f"K / (K − 1) of {labels.classes} classes"
        yield (labels.classes - 1) / labels.classes, f"(K − 1) / K of {labels.classes} classes"
    yield 2.0, ""
    yield 0.5, ""
    for power in range(2, POWERS_OF_TWO + 1):
        yield 2.0**power, "a power of two such as a world size or a loss scale"
        yield 2.0**-power, "a power of two such as 1 / a world size"
    yield 1 / math.log(2), "logarithms to base 2"


def _of_upstream(case: Case, tensor: str) -> Iterator[tuple[float, str]]:
    upstream = np.asarray(case.grad_output)
    if upstream.ndim or not upstream:
        return
    if tensor.startswith("grad."):
        yield 1 / float(upstream), f"upstream gradient ({upstream:g}) ignored"
        yield float(upstream), f"upstream gradient ({upstream:g}) applied twice"
    else:
        yield float(upstream), f"multiplied by the upstream gradient ({upstream:g})"


def _of_means(case: Case, tensor: str) -> Iterator[tuple[float, str]]:
    """A sum for a mean, a mean for a sum, or a mean over something else."""
    labels, divisor = alterations.labels(case, tensor), alterations.divisor(case, tensor)
    if divisor is not None and divisor.right:
        right = f"{divisor.what} ({divisor.right:g})"
        yield divisor.right, f"a sum for a mean over {right}"
        for count, what in ((divisor.all, divisor.all_what), *_counts(case, tensor)):
            if count:
                yield divisor.right / count, f"a mean over {what} ({count:g}) instead of {right}"
    elif case.parameters.get("reduction") == "sum":
        counts = _counts(case, tensor)
        yield from ((1 / count, f"a mean over {what} ({count:g}) for a sum") for count, what in counts if count)
    boxes = case.parameters.get("num_boxes")
    if boxes:
        yield float(boxes), f"num_boxes ({boxes:g}) ignored"
    if labels is not None and "weight" in case.inputs and divisor is not None and labels.counted:
        words = f"a mean over the rows that count ({labels.counted}) instead of their weights"
        yield divisor.right / labels.counted, words


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
        counts += [(labels.counted, "the number of rows that count"), (labels.values.size, "the number of labels")]
    objects = [value for key, value in case.inputs.items() if key.startswith("labels.") and key.endswith("boxes")]
    if objects:
        counts.append((sum(len(boxes) for boxes in objects), "the number of objects"))
    counts += [(math.prod(shape[:-1]), "the number of rows"), (math.prod(shape), "the number of elements")]
    counts += [(length, f"the length of axis {axis}") for axis, length in enumerate(shape) if axis]
    items = case.parameters.get("num_items_in_batch")
    return counts if items is None else [*counts, (float(items), "num_items_in_batch")]
