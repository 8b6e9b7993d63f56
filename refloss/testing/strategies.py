"""Hypothesis strategies for the inputs of every function."""

from __future__ import annotations

try:
    from refloss.testing.cases.drawn import inputs
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ImportError("refloss.testing.strategies needs Hypothesis: pip install 'refloss[testing]'") from error

__all__ = ["inputs"]
