"""Writing golden files, and checking that a folder of them still holds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import refloss
from refloss.cases.source import Case
from refloss.files import load_tensors, nested, replacing, save_tensors
from refloss.golden.corpus import corpus
from refloss.messages import EXPECTED_ERRORS, reason
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.result import LossResult

FORMAT = 1
MANIFEST = "manifest.json"


def evaluate(case: Case, **keywords: Any) -> LossResult:
    """The right answer of a case; keywords are those that every loss takes."""
    function = FUNCTIONS[case.function]
    given = nested(case.inputs) | case.parameters | keywords
    result: LossResult = function.call(**given, grad_output=case.grad_output)
    return result


def expected_tensors(result: LossResult) -> dict[str, Any]:
    """A result under the names that golden files use."""
    for name in result.intermediates:
        if name.startswith("margin"):
            _ = result.intermediates[name]  # a case whose matching is a near tie has to say so
    return {
        "expected.loss": result.loss,
        **{f"expected.component.{name}": value for name, value in result.components.items()},
        **{f"expected.grad.{name}": value for name, value in result.grads.items()},
        **{f"expected.intermediate.{name}": value for name, value in result.intermediates.computed().items()},
    }


def write(folder: Path, only: set[str] | None = None, report: Callable[[int, int], None] | None = None) -> int:
    """Write a file for every case and the manifest last; the number of cases."""
    unknown = sorted((only or set()) - set(FUNCTIONS))
    if unknown:
        raise ValueError(f"no golden cases for {', '.join(unknown)}; there are some for {', '.join(FUNCTIONS)}")
    folder.mkdir(parents=True, exist_ok=True)
    cases = corpus(only)
    entries = []
    for case in cases:
        entries.append(_write_case(folder, case))
        if report is not None:
            report(1, len(cases))
    manifest = {"format": FORMAT, "refloss": refloss.__version__, "cases": entries}
    with replacing(folder / MANIFEST) as part:
        part.write_text(json.dumps(manifest, indent=1) + "\n")
    return len(cases)


def _write_case(folder: Path, case: Case) -> dict[str, Any]:
    tensors: dict[str, Any] = {f"input.{name}": value for name, value in case.inputs.items()}
    scalar = not isinstance(case.grad_output, np.ndarray)
    if not scalar:
        tensors["grad_output"] = case.grad_output
    path = folder / f"{case.id}.safetensors"
    save_tensors(path, tensors | expected_tensors(evaluate(case)))
    return {
        "id": case.id,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "function": case.function,
        "parameters": case.parameters,
        "grad_output": case.grad_output if scalar else None,
    }


def check(folder: Path, report: Callable[[int, int], None] | None = None) -> Iterator[tuple[str, str | None]]:
    """For every case of a folder its id and what is wrong with it, None if recomputing it gives the same bits."""
    entries = read_manifest(folder)["cases"]
    for entry in entries:
        yield entry["id"], _fault(folder, entry)
        if report is not None:
            report(1, len(entries))


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


def read_case(folder: Path, entry: dict[str, Any]) -> tuple[Case, dict[str, np.ndarray]]:
    """A case of a folder, and the tensors that its file expects; a file that is not the one written is a ValueError."""
    path = folder / entry["file"]
    if not path.is_file():
        raise ValueError(f"{entry['file']}: no such file")
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise ValueError(f"{entry['file']}: differs from its checksum in the manifest")
    if entry["function"] not in FUNCTIONS:
        raise ValueError(f"unknown function {entry['function']!r}")
    unknown = set(entry["parameters"]) - set(FUNCTIONS[entry["function"]].parameters)
    if unknown:
        raise ValueError(f"unknown parameters {', '.join(sorted(unknown))}")
    tensors = load_tensors(path)
    inputs = {name.removeprefix("input."): value for name, value in tensors.items() if name.startswith("input.")}
    expected = {name: value for name, value in tensors.items() if name.startswith("expected.")}
    grad_output = tensors["grad_output"] if "grad_output" in tensors else entry.get("grad_output", 1.0)
    return Case(entry["id"], entry["function"], inputs, entry["parameters"], grad_output), expected


def _fault(folder: Path, entry: dict[str, Any]) -> str | None:
    try:
        case, expected = read_case(folder, entry)
        recomputed = {name: np.asarray(value) for name, value in expected_tensors(evaluate(case)).items()}
    except EXPECTED_ERRORS as error:
        return reason(error)
    different = [
        name
        for name in sorted(recomputed.keys() | expected.keys())
        if name not in recomputed or name not in expected or not _same_bits(recomputed[name], expected[name])
    ]
    return f"other bits in {', '.join(different)}" if different else None


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
