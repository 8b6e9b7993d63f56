"""Dask arrays: recognised, and handed to refloss.lazy.graph, which is the only place that imports Dask."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from refloss.result import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    from refloss.specification import Specification

P = ParamSpec("P")
R = TypeVar("R")
INSTALL = "install it with pip install 'refloss[dask]'"


def is_lazy(value: Any) -> bool:
    """Whether an argument, or a part of it, is a Dask array."""
    if isinstance(value, Mapping):
        return any(map(is_lazy, value.values()))
    return type(value).__module__.startswith("dask.array.") and hasattr(value, "chunks")


def accepts_dask_arrays(specification: Specification) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a loss take Dask arrays, and return a result of such; one that has no parts loads them as any other array."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> R:
            # Without Dask there are no arrays of it.
            if "dask" not in sys.modules or not any(map(is_lazy, [*arguments, *keywords.values()])):
                return function(*arguments, **keywords)
            try:
                named = Call(function, arguments, keywords).named()
            except TypeError:
                return function(*arguments, **keywords)  # which says what is wrong with its arguments
            # Of the public function, which every worker finds by its name.
            result: Any = _lazily(call, specification, named)
            return function(*arguments, **keywords) if result is None else result

        return call if specification.in_parts else function

    return decorate


def _lazily(function: Callable[..., Any], specification: Specification, named: dict[str, Any]) -> Any:
    """The result, or None of a loss that does not ask what divides it, as one that is defined elsewhere may be."""
    try:
        from refloss.lazy import graph
    except ImportError as error:
        raise ImportError(f"losses of Dask arrays need Dask ({error}); {INSTALL}") from error
    from refloss.numerics.shares import NoPartsError

    try:
        return graph.lazily(function, specification, named)
    except NoPartsError:
        return None
