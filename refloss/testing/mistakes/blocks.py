"""Elements beyond the last whole block of a kernel, which nobody looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.messages import EXPECTED_ERRORS
from refloss.roundoff import real
from refloss.testing.mistakes.guess import USUAL, Guess
from refloss.testing.mistakes.images import dice_of_first

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.verdict import Question

LEFT_OUT = "elements beyond whole blocks are left out"
SIZES = tuple(2**power for power in range(3, 17))


def elements_left_out(asked: Question) -> Iterator[Guess]:
    """Neither a loss nor a gradient of them; of masks, no part in their sums."""
    if asked.case.function == "dice":
        for size in SIZES:
            for tensors in dice_of_first(asked.case, size):
                yield Guess(LEFT_OUT, USUAL, tensors, is_certain=False)
        return
    losses = losses_of(asked)
    if losses is None:
        return
    total = float(losses.sum())
    for size in SIZES:
        whole = losses.size // size * size
        if whole == losses.size or not whole:
            continue
        tensors = {
            name: _cut(real(value), losses.size, whole)
            for name, value in asked.expected.items()
            if name.startswith("grad.") and value.size and value.size % losses.size == 0
        }
        loss = real(asked.result.loss)
        if loss.ndim:
            tensors["loss"] = _cut(loss, losses.size, whole)
        elif total:
            tensors["loss"] = loss * (losses[:whole].sum() / total)
        yield Guess(LEFT_OUT, USUAL, tensors, is_certain=False)


def losses_of(asked: Question) -> np.ndarray | None:
    """Of each element, or pair of boxes, but for a common factor; None where there are none."""
    known = asked.result.intermediates
    try:
        if "losses" in known:
            return real(known["losses"]).reshape(-1)
        return 1 - real(known["giou" if asked.case.function == "giou" else "iou"]).reshape(-1)
    except (*EXPECTED_ERRORS, LookupError):
        return None


def _cut(values: np.ndarray, count: int, whole: int) -> np.ndarray:
    """With zeros instead of what belongs to the last of so many elements."""
    left = np.arange(values.size) // (values.size // count) < whole
    return np.where(left.reshape(values.shape), values, 0.0)
