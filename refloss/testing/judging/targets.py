"""A Python function by the name that a shell gives it: module:function, or path.py:function."""

from __future__ import annotations

import importlib
import importlib.util
import operator
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def function(target: str) -> Callable[..., Any]:
    """The function; whatever keeps it from being there is a ValueError."""
    source, colon, name = target.rpartition(":")
    if not (source and colon and name):
        raise ValueError(f"{target}: expected module:function, or path.py:function")
    try:
        module = _file(Path(source)) if source.endswith(".py") else _module(source)
    except (Exception, SystemExit) as error:  # a module may raise anything
        raise ValueError(f"{source} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError as error:
        raise ValueError(f"{source} has no {name}") from error
    if not callable(found):
        raise ValueError(f"{target} is of type {type(found).__name__}; expected a function")
    return found  # type: ignore[no-any-return]


def _module(name: str) -> ModuleType:
    """As python -m finds it: the current folder comes first."""
    sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _file(path: Path) -> ModuleType:
    """As Python runs a script: what lies beside it can be imported."""
    sys.path.insert(0, str(path.parent.absolute()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
