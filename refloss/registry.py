"""Every loss and head by name: what the command line and the golden files know of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from refloss.heads.causal_lm import causal_lm
from refloss.heads.masked_lm import masked_lm
from refloss.losses.cross_entropy import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.result import LossResult


class Function(NamedTuple):
    """A public function: its array arguments, which of them have gradients, and its other arguments by type."""

    call: Callable[..., LossResult]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    differentiable: tuple[str, ...]
    parameters: dict[str, type]
    counts_tokens: bool = False

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (self.call.__doc__ or "").partition("\n")[0]


FUNCTIONS: dict[str, Function] = {
    "cross_entropy": Function(
        cross_entropy,
        required=("logits", "target"),
        optional=("weight",),
        differentiable=("logits", "target"),
        parameters={"ignore_index": int, "reduction": str, "label_smoothing": float},
    ),
    "causal_lm": Function(
        causal_lm,
        required=("logits", "labels"),
        optional=("shift_labels",),
        differentiable=("logits",),
        parameters={"vocab_size": int, "num_items_in_batch": float, "ignore_index": int},
        counts_tokens=True,
    ),
    "masked_lm": Function(
        masked_lm,
        required=("logits", "labels"),
        optional=(),
        differentiable=("logits",),
        parameters={"vocab_size": int, "num_items_in_batch": float, "ignore_index": int},
        counts_tokens=True,
    ),
}
