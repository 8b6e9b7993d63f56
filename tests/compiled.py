"""Scalars and helpers have no way in from Python; this gives them one."""

from typing import Any

import numba


def compiled(function: Any) -> Any:
    """A function that Python can call and that calls another."""

    @numba.njit
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call
