"""How losses are added up: in one chain, in 16 bits, or rounded to 16 bits before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from refloss.messages import EXPECTED_ERRORS
from refloss.roundoff import real, roundoff
from refloss.testing.diagnosis import Cause
from refloss.testing.mistakes.guess import POSSIBLE, SELDOM, Guess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refloss.testing.mistakes.rows import View
    from refloss.testing.mistakes.tensors import Tensor
    from refloss.testing.verdict import Question

CHAIN = "a running sum in one chain (naive float32)"
_LEAST = 2**10  # terms below which no order of additions shows
_KINDS = (ml_dtypes.bfloat16, np.float16)


def chain_bound(asked: Question) -> float:
    """How far off a sum of positive terms may be that is made in one chain: n·v of it."""
    terms = max((value.size for value in asked.case.inputs.values()), default=0)
    return terms * roundoff(asked.compute_dtype).inside * abs(float(asked.expected["loss"]))


def one_chain(asked: Question, tensor: Tensor) -> Iterator[Cause]:
    """A loss that is off by no more than the order of its additions may do."""
    if tensor.name != "loss" or tensor.got.ndim or not np.isfinite(tensor.got):
        return
    terms = sum(value.size for value in asked.case.inputs.values())
    error = abs(float(tensor.got - tensor.expected))
    if terms >= _LEAST and error <= min(chain_bound(asked), 0.9 * abs(float(tensor.expected))):
        yield Cause(CHAIN, SELDOM / 2)


def in_16_bits(asked: Question, every: list[View], only: set[str] | None = None) -> Iterator[Guess]:
    """Losses that are rounded to 16 bits, and their sum as well."""
    names = "sums are accumulated in the 16-bit type", "losses are rounded to 16 bits before they are added"
    if only is not None and not only & set(names):
        return
    if np.ndim(asked.expected["loss"]):
        for kind in _KINDS:
            yield Guess(names[1], POSSIBLE, {"loss": real(asked.expected["loss"].astype(kind))})
        return
    losses = _losses(asked, every)
    if losses is None or not 4 <= losses.size <= 2**20 or not np.isfinite(losses).all():
        return
    total = float(losses.sum())
    share = float(asked.expected["loss"]) / total if total else 0.0
    with np.errstate(all="ignore"):
        for kind in _KINDS:
            rounded = losses.astype(kind)
            epsilon = float(ml_dtypes.finfo(kind).eps)  # type: ignore[no-untyped-call]
            once = np.asarray(real(rounded).sum() * share)
            yield Guess(names[1], POSSIBLE, {"loss": once}, {"loss": epsilon * abs(once) / losses.size})
            if losses.size <= 2**16:
                chain = np.asarray(float(np.add.accumulate(rounded)[-1]) * share)
                yield Guess(names[0], POSSIBLE, {"loss": chain}, {"loss": epsilon * abs(chain)})


def _losses(asked: Question, every: list[View]) -> np.ndarray | None:
    if every:
        return np.concatenate([view.losses[view.counted] * view.share for view in every]) if len(every) == 1 else None
    try:
        return real(asked.result.intermediates["losses"]).reshape(-1)
    except (*EXPECTED_ERRORS, LookupError):
        return None
