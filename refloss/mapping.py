"""transformers' LOSS_MAPPING: model kinds and the loss of each."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.result import LossResult


def _forgiving(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that ignores keywords which it does not have, as transformers' losses do."""
    known = frozenset(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **{name: value for name, value in keywords.items() if name in known})

    return call


# Any stands for None, which one of them may return and nobody should have to rule out for the others.
LOSS_MAPPING: dict[str, Callable[..., LossResult | Any]] = {
    key: _forgiving(function.call) for function in FUNCTIONS.values() for key in function.specification.keys
}
