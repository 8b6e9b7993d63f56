"""Rows whose log-probabilities of classes and whose entropy are asked for: their arguments, checked, and the result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refloss import arrays
from refloss.kernels.log_probs.loop import Given
from refloss.result import LossResult

if TYPE_CHECKING:
    from refloss.kernels.log_probs.loop import Results
    from refloss.kernels.logits.chain import Chain

COMPONENTS = ("log_probs", "entropy")


class Asked(NamedTuple):
    """What is asked of rows of logits."""

    classes: np.ndarray  # [...] or [..., K] int64
    counts: np.ndarray  # [...] bool

    def given(self, grad_output: Any, chain: Chain) -> Given:
        """The same as rows are worked on, with the cotangents of both components."""
        shapes = dict(zip(COMPONENTS, (self.classes.shape, self.counts.shape), strict=True))
        cotangents = arrays.component_cotangents(grad_output, shapes)
        several = math.prod(self.classes.shape[self.counts.ndim :])
        rows = self.counts.size, several
        return Given(
            classes=np.ascontiguousarray(self.classes.reshape(rows)),
            counts=np.ascontiguousarray(self.counts.reshape(-1)),
            upstream=np.ascontiguousarray(cotangents["log_probs"].reshape(rows)),
            of_entropy=np.ascontiguousarray(cotangents["entropy"].reshape(-1)),
            chain=chain,
        )

    def result(self, results: Results, grads: dict[str, np.ndarray]) -> LossResult:
        """What rows yield, in their shapes."""
        log_probs, entropy = results.log_probs.reshape(self.classes.shape), results.entropy.reshape(self.counts.shape)
        return LossResult(
            loss=log_probs[()], grads=grads, components={"log_probs": log_probs[()], "entropy": entropy[()]}
        )


def asked_of(index: Any, mask: Any, shape: tuple[int, ...], of_name: str = "logits") -> Asked:
    """Of logits of a shape, checked."""
    counts = counted(mask, shape[:-1], f"one for each row of {of_name}")
    return Asked(_checked_index(index, shape, counts, of_name), counts)


def counted(mask: Any, shape: tuple[int, ...], why: str) -> np.ndarray:
    """What counts: everything without a mask."""
    if mask is None:
        return np.ones(shape, bool)
    array = arrays.as_array(mask, "mask")
    arrays.check_shape(array, shape, "mask", why)
    if array.dtype == bool:
        return array
    if not arrays.is_real(array):
        raise TypeError(f"mask has dtype {array.dtype}; expected bool, or numbers 0 and 1")
    counted = np.asarray(array != 0)
    if not np.all((array == 1) | ~counted):
        raise ValueError("mask has other numbers than 0 and 1")
    return counted


def _checked_index(index: Any, shape: tuple[int, ...], counts: np.ndarray, of_name: str) -> np.ndarray:
    """The classes of rows as int64, 0 for those of rows that do not count."""
    array = arrays.integer_array(index, "index")
    if array.shape[: len(shape) - 1] != counts.shape or array.ndim not in (len(shape) - 1, len(shape)):
        expected = f"{counts.shape}, or that and several for each row, of {of_name} {shape}"
        raise ValueError(f"index has shape {array.shape}; expected {expected}")
    counted = np.where(counts if array.ndim < len(shape) else counts[..., None], array, array.dtype.type(0))
    if np.any(counts):
        arrays.check_range(counted, 0, shape[-1] - 1, "index")
    return counted.astype(np.int64)
