"""Which of the usual mistakes explains a tensor that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refloss.testing.judge import Question
    from refloss.testing.verdict import TensorVerdict


def explain(asked: Question, verdict: TensorVerdict) -> str | None:  # noqa: ARG001
    """The mistake under which the tensor would pass, if it is one of the usual ones."""
    return None
