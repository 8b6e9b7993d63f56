"""Builds refloss with compiled kernels: hatchling, and before a wheel is packed, every kernel compiled on all cores.

``pip install .`` compiles for the machine at hand. A wheel for others is made with REFLOSS_LEVELS, names of
``refloss.levels.LEVELS`` separated by commas, on a machine that is of all of them; REFLOSS_LEVELS=none makes a wheel
without machine code, and so does whatever goes wrong while compiling for the machine at hand. REFLOSS_ONLY, names of
functions, leaves the kernels of the others out. Editable installations compile nothing.

A package index shows the readme without the files beside it: there, links to them are their names.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling import build
from hatchling.build import *  # noqa: F403  # what frontends call
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.wheel import WheelBuilder
from hatchling.metadata.plugin.interface import MetadataHookInterface

_AT_HAND = "native"
# What only the command line and reports need.
_OF_FACES = ("typer", "rich", "jinja2", "markupsafe")


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What compiling kernels needs: what running them does. Source archives and editable installations do without."""
    required: list[str] = build.get_requires_for_build_wheel(config_settings)
    if _levels():
        needed = WheelBuilder(str(Path.cwd())).metadata.core.dependencies
        required += [each for each in needed if not each.startswith(_OF_FACES)]
    return required


class CompiledKernels(BuildHookInterface):
    """Adds the folders refloss/compiled/LEVEL to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel called after this Python and this platform."""
        names = _levels()
        if version == "editable" or not names:
            return
        self._folder = tempfile.TemporaryDirectory()
        try:
            compiled = _compiled(Path(self.root), Path(self._folder.name), names)
        except Exception as error:
            self.finalize()
            if names != [_AT_HAND]:
                raise
            self.app.display_warning(f"kernels will be compiled when they are first called: {error!r}")
            return
        build_data["force_include"].update(compiled)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, *_: Any) -> None:
        """Remove what has been packed."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


class ReadmeOfIndex(MetadataHookInterface):
    """Sets the readme that a package index shows."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add it to a project's metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_relative_links(text)}


def without_relative_links(text: str) -> str:
    """Markdown whose links into the repository are names of its files, and which shows none of its pictures."""
    to_file = r"\]\((?!\w+:|#)(?P<file>[^)]+)\)"
    text = re.sub(rf"^!\[[^\]]*{to_file}\n\n?", "", text, flags=re.MULTILINE)
    text = re.sub(rf"\[(?P<name>[^\[\]]+){to_file}", _named, text)
    return re.sub(r"<!--.*?-->\n", "", text)


def _named(link: re.Match[str]) -> str:
    name, file = link["name"], link["file"]
    return file if name == file else f"{name} ({file})"


def _levels() -> list[str]:
    told = os.environ.get("REFLOSS_LEVELS", _AT_HAND)
    return [name for each in told.split(",") if (name := each.strip()) not in {"", "none"}]


def _compiled(root: Path, folder: Path, names: list[str]) -> dict[str, str]:
    """Folders of compiled kernels, and where they go."""
    sys.path.insert(0, str(root))
    from refloss import levels
    from refloss.ahead import compile_kernels

    only = os.environ.get("REFLOSS_ONLY")
    for name in names:
        if name != levels.NATIVE and name not in levels.LEVELS:
            raise ValueError(f"REFLOSS_LEVELS: {name!r} is none of {', '.join(levels.LEVELS)}")
        (folder / name).mkdir()
        compile_kernels(folder / name, name, only=frozenset(only.split(",")) if only else None)
    return {str(folder / name): f"refloss/compiled/{name}" for name in names}
