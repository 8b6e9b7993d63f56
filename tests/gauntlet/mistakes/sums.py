"""What comes from above, and how losses are added up: of every loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss.cases.source import Case
from tests.gauntlet.honest import ELEMENTS, HONEST, REDUCED, ROWS
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, from_above, of_gradients, stepped

if TYPE_CHECKING:
    from tests.gauntlet.kernels import Kernel
    from tests.gauntlet.rows import Rows


def several_cotangents(case: Case) -> bool:
    """Whether losses have cotangents of their own that differ."""
    return np.ndim(case.grad_output) > 0 and len(np.unique(np.asarray(case.grad_output))) > 1


def chain(values: np.ndarray, axis: int | None, dtype: Any) -> np.ndarray:
    """One running sum, rounded after each addition."""
    values = values.ravel() if axis is None else values
    if not values.size:
        return values.sum(axis=axis or 0)
    total = np.add.accumulate(values.astype(dtype), axis=axis or 0, dtype=dtype).take(-1, axis=axis or 0)
    return np.asarray(total).astype(values.dtype)


def in_one_chain(self: Kernel, values: np.ndarray, axis: int | None = None) -> np.ndarray:
    return chain(values, axis, values.dtype)


def in_bfloat16(self: Kernel, values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Sums of losses; those of a row are in float32."""
    return (
        chain(values, axis, ml_dtypes.bfloat16) if axis is None and values.dtype != bool else np.sum(values, axis=axis)
    )


def rounded_losses(self: Any, rows: Rows, losses: np.ndarray, counts: np.ndarray) -> np.ndarray:
    stored = losses.astype(ml_dtypes.bfloat16).astype(losses.dtype)
    return HONEST[self.function].reduced(self, rows, stored, counts)


def rounded_elements(self: Any, losses: np.ndarray, divisor: Any, parameters: dict[str, Any]) -> np.ndarray:
    stored = losses.astype(ml_dtypes.bfloat16).astype(losses.dtype)
    return HONEST[self.function].reduced(self, stored, divisor, parameters)


def many_elements(function: str) -> list[Case]:
    """More float32 terms than one chain can add up."""
    values = np.full(2**24, 1.1, np.float32)
    return [Case(f"{function}-long", function, {"input": values, "target": np.zeros_like(values)}, {}, 1.0)]


UPSTREAM_MISTAKES = [
    Mistake(
        "upstream ignored",
        "ROCm/TransformerEngine#336",
        tuple(HONEST),
        from_above(np.ones_like),
        "upstream gradient ignored",
    ),
    Mistake(
        "upstream applied twice", TUTORIALS, tuple(HONEST), from_above(np.square), "upstream gradient applied twice"
    ),
    Mistake(
        "the first upstream for all",
        "linkedin/Liger-Kernel#968",
        REDUCED,
        from_above(lambda cotangent: cotangent.ravel()[:1].reshape(()) if cotangent.size else cotangent),
        "the first element of the upstream gradient is used for all rows",
        several_cotangents,
        "where losses have cotangents of their own",
    ),
    Mistake("a wrong sign", "jsboige/CoursIA#16165", tuple(HONEST), of_gradients(np.negative), "a wrong sign"),
    Mistake("no gradient", "KernelBench#165", tuple(HONEST), of_gradients(np.zeros_like), "zero everywhere"),
    Mistake(
        "transposed",
        TUTORIALS,
        ("mse", "kl_div", "bce_with_logits"),
        of_gradients(lambda values: np.ascontiguousarray(values.T).reshape(values.shape)),
        "transposed: axes 0 and 1 are exchanged",
        lambda case: next(iter(case.inputs.values())).ndim == 2,
        "where there are two axes",
    ),
    Mistake(
        "the next row's gradient",
        "flagos-ai/FlagGems#5026",
        ("cross_entropy", "nll", "masked_lm", "mse"),
        of_gradients(lambda values: np.roll(values, -1, axis=max(values.ndim - 2, 0)) if values.ndim else values),
        "shifted by one position",
    ),
    Mistake(
        "losses in 16 bits",
        "Modalities/modalities#464",
        ROWS,
        stepped(reduced=rounded_losses),
        "losses are rounded to 16 bits before they are added",
    ),
    Mistake(
        "losses of elements in 16 bits",
        "pytorch/xla#2425",
        ELEMENTS,
        stepped(reduced=rounded_elements),
        "losses are rounded to 16 bits before they are added",
    ),
    Mistake(
        "sums in 16 bits",
        "pytorch/pytorch#166232",
        (*ROWS, *ELEMENTS),
        stepped(sum=in_bfloat16),
        "sums are accumulated in the 16-bit type",
    ),
    Mistake(
        "one chain",
        "pytorch/pytorch#55657",
        ("mse",),
        stepped(sum=in_one_chain),
        "a running sum in one chain (naive float32)",
        cases=many_elements,
        why="where millions of terms are added, more than a golden case has",
    ),
]
