"""How losses are added up: in one chain, in 16 bits, or rounded to 16 bits before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from refloss.error_model import bounds
from refloss.roundoff import real
from refloss.testing.diagnosis import Cause
from refloss.testing.mistakes.blocks import losses_of
from refloss.testing.mistakes.guess import POSSIBLE, SELDOM, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.rows import View
    from refloss.testing.mistakes.tensors import Tensor
    from refloss.testing.verdict import Question

CHAIN = "a running sum in one chain (naive float32)"
SUMMED = "sums are accumulated in the 16-bit type"
ROUNDED = "losses are rounded to 16 bits before they are added"
_LEAST = 2**10  # terms below which no order of additions shows
_KINDS = (ml_dtypes.bfloat16, np.float16)


def one_chain(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    """A loss that is off by no more than the order of its additions may do."""
    if tensor.name != "loss" or tensor.got.ndim or not np.isfinite(tensor.got):
        return
    terms = sum(value.size for value in asked.case.inputs.values())
    error = abs(float(tensor.got - tensor.expected))
    if terms < _LEAST or error > 0.9 * abs(float(tensor.expected)):
        return
    if error <= float(bounds(asked.case, asked.result, asked.compute_dtype, summation="any")["loss"].part(0, 1)[0]):
        yield Cause(CHAIN, SELDOM / 2)


def in_16_bits(asked: Question, every: list[View], only: set[str] | None = None) -> Iterator[Guess]:
    """Losses that are rounded to 16 bits, and their sum as well."""
    if only is not None and not only & {SUMMED, ROUNDED}:
        return
    if np.ndim(asked.result.loss):
        for kind in _KINDS:
            yield Guess(ROUNDED, POSSIBLE, {"loss": real(np.asarray(asked.result.loss).astype(kind))})
        return
    terms = _terms(asked, every)
    if not terms or not all(np.isfinite(losses).all() and losses.size <= 2**20 for losses, _ in terms):
        return
    for kind in _KINDS:
        once = sum(real(losses.astype(kind)).sum() * share for losses, share in terms)
        yield Guess(ROUNDED, POSSIBLE, {"loss": np.asarray(once)})
        if all(losses.size <= 2**16 for losses, _ in terms):
            chain = sum(_chain(losses.astype(kind)) * share for losses, share in terms)
            yield Guess(SUMMED, POSSIBLE, {"loss": np.asarray(chain)})
            # In another order it is another number.
            about = float(ml_dtypes.finfo(kind).eps) * abs(float(chain))  # type: ignore[no-untyped-call]
            yield Guess(SUMMED, SELDOM, {"loss": np.asarray(chain)}, {"loss": about})


def _chain(losses: np.ndarray) -> float:
    return float(np.add.accumulate(losses)[-1]) if losses.size else 0.0


def _terms(asked: Question, every: list[View]) -> list[tuple[np.ndarray, float]]:
    """What is added up, and what the sum is multiplied by; several of both where a loss is made of parts."""
    if every:
        return [(view.losses[view.counted], view.share / view.normaliser) for view in every if view.normaliser]
    losses = losses_of(asked)
    total = 0.0 if losses is None else float(losses.sum())
    return [] if losses is None or not total else [(losses, float(asked.result.loss) / total)]
