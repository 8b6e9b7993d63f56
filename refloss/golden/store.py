"""Writing golden files, and checking that a folder of them still holds."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from refloss.arrays import float_array, float_dtype
from refloss.cases.source import DTYPES, Case
from refloss.files import disk_array, load_tensors, nested, save_tensors
from refloss.golden.corpus import corpus, dtype_of, matching
from refloss.golden.drawn import fresh
from refloss.golden.manifest import MANIFEST, decoded, encoded, read_manifest, write_manifest
from refloss.messages import EXPECTED_ERRORS, reason, unknown
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from refloss.registry import Function
    from refloss.result import LossResult

    # What a file has beside inputs and right answers, such as bounds; a context, because it may be on disk.
    Beside = Callable[[Case, LossResult], AbstractContextManager[Mapping[str, Any]]]

Item = TypeVar("Item")

_BLOCK = 1 << 24
_LARGE = 1 << 28  # bytes of an input, from which on its gradient need not be in memory


def evaluate(case: Case, **options: Any) -> LossResult:
    """The right answer of a case; options are keywords that every function takes."""
    call = FUNCTIONS[case.function].call
    result: LossResult = call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output, **options)
    return result


@contextlib.contextmanager
def gradient_on_disk(function: Function, given: Mapping[str, Any], folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """A function's out argument, where it has one: its first gradient may be larger than memory."""
    if "out" not in inspect.signature(function.call).parameters:
        yield {}
        return
    name = function.differentiable[0]
    like = float_array(given[name], name)
    with disk_array(folder, like.shape, float_dtype(given.get("grad_dtype", like.dtype), "grad_dtype")) as buffer:
        yield {"out": buffer}


def expected_tensors(result: LossResult) -> dict[str, Any]:
    """A result under the names that golden files use."""
    for name in result.intermediates:
        if name.startswith("margin"):
            _ = result.intermediates[name]  # a case whose matching is a near tie has to say so
    return {
        "expected.loss": result.loss,
        **{f"expected.component.{name}": value for name, value in result.components.items()},
        **{f"expected.grad.{name}": value for name, value in _tensors(result.grads).items()},
        **{f"expected.intermediate.{name}": value for name, value in result.intermediates.computed().items()},
    }


def _tensors(grads: Mapping[str, Any]) -> dict[str, Any]:
    """Gradients by name; those of the arrays of a list by numbers, as such arrays are given."""
    found: dict[str, Any] = {}
    for name, value in grads.items():
        found |= {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, list) else {name: value}
    return found


def write(
    folder: Path,
    only: set[str] | None = None,
    report: Callable[[int, int], None] | None = None,
    *,
    globs: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    seed: int | None = None,
    count: int = 0,
    beside: Beside | None = None,
) -> int:
    """Write a file for every built-in case, or for count fresh ones of each function that follow from a seed.

    Of these only those whose ids match patterns, and whose first input has one of some dtypes, if there are such. The
    manifest comes last. Returns the number of cases.
    """
    for what, names, known in (("function", only or (), FUNCTIONS), ("dtype", dtypes, DTYPES)):
        if wrong := sorted(set(names) - set(known)):
            raise ValueError(unknown(what, wrong, known))
    if (folder / MANIFEST).exists() and (own := [e["id"] for e in read_manifest(folder)["cases"] if e.get("own")]):
        raise ValueError(f"{folder}: has cases of your own, {', '.join(own)}, which would be lost; write elsewhere")
    if seed is None:
        cases = [case for case in corpus(only) if not dtypes or dtype_of(case) in dtypes]
    else:
        names = [name for name in FUNCTIONS if only is None or name in only]
        cases = [case for name in names for case in fresh(name, seed, count, dtypes)]
    ids = matching(globs, [case.id for case in cases])
    cases = [case for case in cases if case.id in ids]
    if not cases:
        raise ValueError(f"no case has a first input in {', '.join(dtypes)}")
    folder.mkdir(parents=True, exist_ok=True)
    facts = {} if seed is None else {"seed": seed, "cases_per_function": count}
    entries = [_write_case(folder, case, evaluate(case), beside) for case in counted(cases, report)]
    write_manifest(folder, entries, facts)
    return len(cases)


def counted(items: Sequence[Item], report: Callable[[int, int], None] | None) -> Iterator[Item]:
    """Items, with report(done since the last call, in all) before the first and after each."""
    if report is not None:
        report(0, len(items))
    for item in items:
        yield item
        if report is not None:
            report(1, len(items))


def add(folder: Path, case: Case, result: LossResult, beside: Beside | None = None) -> None:
    """Write a case with its right answer into a folder, new or of golden files; the manifest is replaced last."""
    check_new(folder, case.id)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {"cases": []}
    if any(isinstance(value, list) for value in result.grads.values()):
        result = evaluate(case)  # which has one array, and where it is cut
    entry = _write_case(folder, case, result, beside)
    facts = {name: value for name, value in manifest.items() if name not in ("format", "refloss", "corpus", "cases")}
    write_manifest(folder, [*manifest["cases"], {**entry, "own": True}], facts)


def check_new(folder: Path, name: str) -> None:
    """Raise unless a folder may have a case of a name, before hours of work."""
    if re.fullmatch(r"\w[\w.+-]*", name, re.ASCII) is None:
        raise ValueError(f"{name!r} is no id: letters, digits, and _ - + . after the first of them")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: not a folder")
    entries = read_manifest(folder)["cases"] if (folder / MANIFEST).exists() else []
    if any(name == entry["id"] or _file_name(name) == entry["file"] for entry in entries):
        raise ValueError(f"{folder}: there is a case {name!r} already; give this one another id")


def _file_name(name: str) -> str:
    return f"{name}.safetensors"


def _write_case(folder: Path, case: Case, result: LossResult, beside: Beside | None) -> dict[str, Any]:
    tensors: dict[str, Any] = {f"input.{name}": value for name, value in case.inputs.items()}
    upstream, arrays = _taken_apart(case.grad_output)
    entry: dict[str, Any] = {
        "id": case.id,
        "file": _file_name(case.id),
        "function": case.function,
        "parameters": {name: encoded(value, name) for name, value in case.parameters.items()},
        "grad_output": encoded(upstream, "grad_output"),
    }
    tensors |= arrays | expected_tensors(result)
    path = folder / entry["file"]
    if beside is None:
        save_tensors(path, tensors)
    else:
        with beside(case, result) as others:
            save_tensors(path, tensors | dict(others))
    return {"id": entry.pop("id"), "file": entry.pop("file"), "sha256": _hash(path), **entry}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(folder: Path, report: Callable[[int, int], None] | None = None) -> Iterator[tuple[str, str | None]]:
    """For every case of a folder its id and what is wrong with it, None if recomputing it gives the same bits."""
    entries = read_manifest(folder)["cases"]
    for entry in counted(entries, report):
        yield entry["id"], _fault(folder, entry)


def read_case(folder: Path, entry: dict[str, Any]) -> tuple[Case, dict[str, np.ndarray]]:
    """A case of a folder, and the tensors that its file expects; a file that is not the one written is a ValueError."""
    path = folder / entry["file"]
    if not path.is_file():
        raise ValueError(f"{entry['file']}: no such file")
    if _hash(path) != entry["sha256"]:
        raise ValueError(f"{entry['file']}: differs from its checksum in the manifest")
    if entry["function"] not in FUNCTIONS:
        raise ValueError(f"unknown function {entry['function']!r}")
    others = set(entry["parameters"]) - set(FUNCTIONS[entry["function"]].parameters)
    if others:
        raise ValueError(f"unknown parameters {', '.join(sorted(others))}")
    tensors = load_tensors(path)
    inputs = {name.removeprefix("input."): value for name, value in tensors.items() if name.startswith("input.")}
    expected = {name: value for name, value in tensors.items() if name.startswith("expected.")}
    upstream = _put_together(decoded(entry.get("grad_output", 1.0)), tensors)
    return Case(entry["id"], entry["function"], inputs, decoded(entry["parameters"]), upstream), expected


_UPSTREAM = "grad_output"


def _taken_apart(given: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A cotangent as a manifest has it, None in the place of arrays, and these by their names in a file."""
    if isinstance(given, np.ndarray):
        return None, {_UPSTREAM: given}
    if not isinstance(given, Mapping):
        return given, {}
    arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
    told = {name: None if name in arrays else value for name, value in given.items()}
    return told, {f"{_UPSTREAM}.{name}": value for name, value in arrays.items()}


def _put_together(told: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The inverse."""
    if isinstance(told, Mapping):
        return {name: tensors[f"{_UPSTREAM}.{name}"] if value is None else value for name, value in told.items()}
    return tensors.get(_UPSTREAM, told)


def _fault(folder: Path, entry: dict[str, Any]) -> str | None:
    with contextlib.ExitStack() as stack:
        try:
            case, expected = read_case(folder, entry)
            large = any(value.nbytes > _LARGE for value in case.inputs.values())
            on_disk = gradient_on_disk(FUNCTIONS[case.function], case.inputs, folder)
            result = evaluate(case, **stack.enter_context(on_disk) if large else {})
            recomputed = {name: np.asarray(value) for name, value in expected_tensors(result).items()}
        except EXPECTED_ERRORS as error:
            return reason(error)
        different = [
            name
            for name in sorted(recomputed.keys() | expected.keys())
            if name not in recomputed or name not in expected or not _same_bits(recomputed[name], expected[name])
        ]
    return f"other bits in {', '.join(different)}" if different else None


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    first, second = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (a, b))
    # In blocks: the comparison of all bytes would be as large as they are.
    blocks = (slice(start, start + _BLOCK) for start in range(0, first.size, _BLOCK))
    return all(np.array_equal(first[block], second[block]) for block in blocks)
