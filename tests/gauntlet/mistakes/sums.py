"""What comes from above, and how losses are added up: of every loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from refloss.cases.source import Case
from tests.gauntlet.honest import BOXES, ELEMENTS, HONEST, REDUCED, ROWS
from tests.gauntlet.kernels import Kernel, with_steps
from tests.gauntlet.mistakes.labels import of_true_count
from tests.gauntlet.mistakes.mistake import TUTORIALS, Mistake, from_above, ignored, of_gradients, stepped

if TYPE_CHECKING:
    from tests.gauntlet.rows import Rows

BLOCK = 1024  # elements that a program takes at once
NARROW = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
GRID = 65535  # programs that a grid's second axis has


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


def truncated(function: str) -> Kernel:
    """Gradients are computed in float32, and their low bits cut off."""
    honest = HONEST[function]

    def answer(self: Kernel, inputs: dict[str, Any], parameters: dict[str, Any], cotangent: Any) -> Any:
        narrow = [name for name, value in inputs.items() if value.dtype in NARROW]
        wide = inputs | {name: inputs[name].astype(np.float32) for name in narrow}
        loss, grads, *components = honest.answer(self, wide, parameters, cotangent)
        cut = {name: towards_zero(value, inputs[name].dtype) for name, value in grads.items()}
        return loss, cut, *components

    return with_steps(honest, answer=answer)(function)


def towards_zero(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """In a type, with bits cut off instead of rounded."""
    rounded = values.astype(dtype)
    away = np.abs(rounded.astype(values.dtype)) > np.abs(values)
    return np.where(away, np.nextafter(rounded, np.zeros((), dtype)), rounded)


def beyond_grid(case: Case) -> bool:
    """Whether there are more rows than a grid has."""
    logits = case.inputs["logits" if case.function == "cross_entropy" else "input"]
    return logits.size // logits.shape[min(1, logits.ndim - 1)] > GRID


def within_grid(self: Any, rows: Rows) -> np.ndarray:
    return HONEST[self.function].counts(self, rows) & (np.arange(len(rows.x)) < GRID)


def whole_blocks(count: int) -> int:
    """How many of so many are in whole blocks; all where there is not one."""
    return count // BLOCK * BLOCK or count


def beyond_blocks(case: Case) -> bool:
    """Whether elements, boxes, or those of a mask, are more than a block and no multiple of it."""
    first = next(iter(case.inputs.values()))
    count = first.size
    if case.function in BOXES:
        count //= 4
    if case.function == "dice":
        count //= max(len(first), 1)
    return whole_blocks(count) != count


def cut(values: np.ndarray, axes: int = 0) -> np.ndarray:
    """With zeros where no block is whole; so many last axes belong to one element."""
    values = np.array(values)
    flat = values.reshape(-1, *values.shape[values.ndim - axes :])
    flat[whole_blocks(len(flat)) :] = 0
    return values


def in_blocks(function: str) -> Kernel:
    """The last elements, which fill no block, have no part in the loss."""
    honest = HONEST[function]

    def sums(self: Any, values: np.ndarray) -> np.ndarray:
        return honest.sums(self, values[:, : whole_blocks(values.shape[1])])

    def element(self: Any, *given: Any) -> Any:
        return tuple(cut(each) for each in honest.element(self, *given))

    def loss(self: Any, *sides: Any) -> np.ndarray:
        return cut(honest.loss(self, *sides))

    def derivative(self: Any, *boxes: Any) -> np.ndarray:
        return cut(honest.derivative(self, *boxes), 1)

    if function == "dice":
        return with_steps(honest, sums=sums)(function)
    if function in BOXES:
        return with_steps(honest, loss=loss, derivative=derivative)(function)
    return with_steps(honest, element=element)(function)


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
        "where losses have upstream gradients of their own",
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
        "rows beyond the grid",
        "tenstorrent/tt-metal#53218",
        ("cross_entropy", "nll"),
        stepped(counts=within_grid, divisor=of_true_count),
        "rows beyond a grid are left out",
        beyond_grid,
        f"where there are more than {GRID} rows, which is in one dtype",
        dtypes=("float32",),
    ),
    Mistake(
        "elements beyond the last block",
        TUTORIALS,
        (*ELEMENTS, "dice", *BOXES),
        in_blocks,
        "elements beyond whole blocks are left out",
        beyond_blocks,
        f"where there are more than {BLOCK} elements, boxes, or elements of a mask",
    ),
    Mistake(
        "gradients truncated",
        TUTORIALS,
        ("cross_entropy", "causal_lm", "mse", "sigmoid_focal", "dice"),
        truncated,
        "rounded towards zero instead of to nearest",
        why="where gradients have 16 bits",
        dtypes=("bfloat16", "float16"),
    ),
    ignored("reduction", "verl-project/verl#1083", REDUCED),
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
        dtypes=("float32",),
        why="where millions of terms are added, more than a golden case has",
    ),
]
