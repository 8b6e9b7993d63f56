"""The oracle for deep-learning losses: arrays in, the right loss and the right gradients out."""

from __future__ import annotations

import importlib
from typing import Any

from refloss.homes import homes

__version__ = "0.1.0"

# Where each name lives; losses bring in Numba, so each is imported when first used. __init__.pyi tells type checkers.
_HOMES = {
    **homes(),
    "LOSS_MAPPING": "refloss.mapping",
    "LossResult": "refloss.result",
    "POLICY_PRESETS": "refloss.losses.parts.policy_presets",
    "get_num_threads": "refloss.parallel",
    "set_num_threads": "refloss.parallel",
    "shards": "refloss.heads.parts.row_shards",
}

_MODULES = ("testing", "typing")

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"refloss.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'refloss' has no attribute {name!r}{_suggestion(name)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def _suggestion(name: str) -> str:
    """What may have been meant; Python itself asks for names with two underscores, and catches what it gets."""
    from refloss.messages import did_you_mean

    question = "" if name.startswith("__") else did_you_mean(name, __all__)
    return f"; {question}" if question else ""


def __dir__() -> list[str]:
    return sorted({*_HOMES, *_MODULES, "__version__"})
