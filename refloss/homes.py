"""Where refloss's own losses live: each in a module of its name, in refloss.losses or refloss.heads."""

from __future__ import annotations

import functools
from pathlib import Path

_FOLDERS = ("losses", "heads")


@functools.cache
def homes() -> dict[str, str]:
    """The modules of the losses by their names."""
    root = Path(__file__).parent
    return {
        path.stem: f"refloss.{folder}.{path.stem}"
        for folder in _FOLDERS
        for path in sorted((root / folder).glob("*.py"))
        if path.stem != "__init__"
    }
