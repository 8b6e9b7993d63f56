"""Reading a caller's configuration: any object or mapping. It is never written to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refloss import arrays

_MISSING = object()


def read(config: Any, name: str, *, default: Any = _MISSING) -> Any:
    """An attribute of an object, or an item of a mapping."""
    value = config.get(name, _MISSING) if isinstance(config, Mapping) else getattr(config, name, _MISSING)
    if value is _MISSING:
        value = default
    if value is _MISSING and (config is None or isinstance(config, str | bytes | int | float | list | tuple)):
        raise TypeError(f"config is {arrays.shown(config)}; expected an object or a mapping that has {name!r}")
    if value is _MISSING:
        raise ValueError(f"config has no {name!r}, which this loss reads")
    return value


def flag(config: Any, name: str) -> bool:
    """Something that a configuration says or denies."""
    return arrays.flag(read(config, name), f"config.{name}")
