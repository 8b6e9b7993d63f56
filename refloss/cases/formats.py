"""One case in every format: what a kernel has in one of them it may lack in another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refloss.cases.source import DTYPES, Case

if TYPE_CHECKING:
    from collections.abc import Iterable


def in_every_format(cases: Iterable[Case]) -> list[Case]:
    """Cases of float64 arrays in each format; what lists and mappings hold, such as boxes of objects, is as it was."""
    return [in_format(case, name) for case in cases for name in DTYPES]


def in_format(case: Case, name: str) -> Case:
    """A case in a format, which its id ends in unless that is float32."""
    dtype, suffix = DTYPES[name], "" if name == "float32" else f"-{name}"
    inputs = {
        key: value.astype(dtype) if value.dtype == np.float64 and "." not in key else value
        for key, value in case.inputs.items()
    }
    return case._replace(id=f"{case.id}{suffix}", inputs=inputs)
