"""The manifest of a folder of golden files: what it says, and that it holds together.

manifest.schema.json describes it, docs/golden_format.md tells what it means.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import refloss
from refloss.files import replacing

FORMAT = 1
MANIFEST = "manifest.json"
SCHEMA = Path(__file__).with_name("manifest.schema.json")
# Numbers that JSON does not have.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_manifest(folder: Path, entries: list[dict[str, Any]], facts: Mapping[str, Any]) -> None:
    """Replace a folder's manifest, in one step; facts are of the whole folder."""
    manifest = {"format": FORMAT, "refloss": refloss.__version__, "corpus": corpus_id(entries), **facts}
    with replacing(folder / MANIFEST) as part:
        part.write_text(json.dumps({**manifest, "cases": entries}, indent=1, allow_nan=False) + "\n")


def corpus_id(entries: list[dict[str, Any]]) -> str:
    """What is the same for the same cases, whatever their order: a hash of those of their files."""
    hashes = [entry["sha256"] for entry in sorted(entries, key=lambda entry: str(entry["id"]))]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: no golden files here: there is no {MANIFEST}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, cases = manifest["format"], manifest["cases"]
        complete = isinstance(cases, list) and all(_is_entry(entry) for entry in cases)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a manifest: {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{path}: has format {version}; this version of refloss reads format {FORMAT}")
    if not complete:
        raise ValueError(f"{path}: not a manifest: a case lacks an entry, or names a file elsewhere")
    if not cases:
        raise ValueError(f"{path}: has no cases")
    for key in ("id", "file"):
        value, times = Counter(entry[key] for entry in cases).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{path}: {times} cases have the {key} {value!r}")
    return manifest


def _is_entry(entry: Any) -> bool:
    names = ("id", "file", "sha256", "function")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in names):
        return False
    return isinstance(entry.get("parameters"), dict) and Path(entry["file"]).name == entry["file"]


def encoded(value: Any, name: str) -> Any:
    """A value as JSON has it; numbers that are not finite by their names."""
    if isinstance(value, np.ndarray | np.generic) and not np.ndim(value):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: encoded(part, f"{name}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(part, f"{name}[{i}]") for i, part in enumerate(value)]
    raise TypeError(f"{name} is of type {type(value).__name__}; a manifest has numbers, words, lists and mappings")


def decoded(value: Any) -> Any:
    """The inverse of encoded."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: decoded(part) for key, part in value.items()}
    return [decoded(part) for part in value] if isinstance(value, list) else value
