"""A folder of candidate files against a folder of golden ones."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from refloss.files import load_tensors
from refloss.golden.corpus import matching
from refloss.golden.manifest import read_manifest
from refloss.golden.store import counted, read_case
from refloss.messages import EXPECTED_ERRORS, reason
from refloss.testing.judging.diagnosing import diagnosed
from refloss.testing.judging.judge import question
from refloss.testing.judging.selection import Only, check_names, judged, listed, type_name
from refloss.testing.report.judgement import Judgement
from refloss.testing.verdict import CaseVerdict, TensorVerdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from refloss.testing.verdict import Question

    Report = Callable[[int, int], None]
    # Calls a function with every item; the function and what it is called with can be pickled.
    Each = Callable[[Callable[[Any], Any], Sequence[Any], Report], list[Any]]


def one_by_one(function: Callable[[Any], Any], items: Sequence[Any], report: Report) -> list[Any]:
    """What a function returns for every item."""
    return [function(item) for item in counted(items, report)]


def judge_folders(
    golden: Path,
    candidate: Path,
    compute_dtype: str | None = None,
    report: Report | None = None,
    *,
    functions: str | Iterable[str] | None = None,
    cases: str | Iterable[str] | None = None,
    grads: str | Iterable[str] | None = None,
    components: str | Iterable[str] | None = None,
    each: Each = one_by_one,
) -> Judgement:
    """Every case of a golden folder; the candidate's file for it has the name of the golden file.

    What is wrong with a file is a case that fails; only a folder or a manifest that cannot be read is a ValueError.

    Args:
        golden, candidate: folders.
        compute_dtype: what the candidate computes in; float32 if not given, or float64 for cases that are.
        report: called with how many more are done, 0 at first and then 1, and the number of cases.
        functions: those whose cases are judged; all if not given.
        cases: ids, or patterns of ids; all if not given.
        grads, components: names to judge; all if not given, none of an empty list.
        each: what judges every case, in the order in which they come, in this process or others.

    Raises:
        ValueError: a folder that is none, and names that no case has.
    """
    start, only, compute_dtype = time.perf_counter(), Only(grads, components), type_name(compute_dtype)
    manifest = read_manifest(golden)
    entries = _selected(manifest["cases"], listed(functions), listed(cases))
    if not candidate.is_dir():
        raise ValueError(f"{candidate}: {'not a folder' if candidate.exists() else 'no such folder'}")
    judge_case = functools.partial(_judge_case, golden.absolute(), candidate.absolute(), compute_dtype, only)
    verdicts = []
    for verdict, seen in each(judge_case, entries, report or (lambda *_: None)):
        verdicts.append(verdict)
        only.include(seen)
    only.check()
    facts = {"subject": f"{candidate} against {golden}", "corpus": corpus_id(manifest)}
    by_id = {entry["id"]: entry for entry in entries}
    found = diagnosed(verdicts, lambda name: _question(golden, by_id[name], compute_dtype))
    return Judgement.of(found, compute_dtype, seconds=time.perf_counter() - start, **facts)


def _selected(entries: list[dict[str, Any]], functions: list[str], globs: list[str]) -> list[dict[str, Any]]:
    check_names("function", functions, dict.fromkeys(entry["function"] for entry in entries))
    of_functions = [entry for entry in entries if not functions or entry["function"] in functions]
    ids = matching(globs, [entry["id"] for entry in of_functions])
    return [entry for entry in of_functions if entry["id"] in ids]


def corpus_id(manifest: dict[str, Any]) -> str:
    """What the manifest says, or else a hash of its files, whatever their order."""
    if isinstance(manifest.get("corpus"), str):
        return str(manifest["corpus"])
    hashes = [entry["sha256"] for entry in sorted(manifest["cases"], key=lambda entry: str(entry["id"]))]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def files_without_case(golden: Path, candidate: Path) -> list[str]:
    """The names in a candidate's folder that no case has."""
    known = {entry["file"] for entry in read_manifest(golden)["cases"]}
    return sorted(path.name for path in candidate.iterdir() if path.name not in known)


def _judge_case(
    golden: Path, candidate: Path, compute_dtype: str | None, only: Only, entry: dict[str, Any]
) -> tuple[CaseVerdict, Only]:
    """The verdict on a case and what it took; only has seen the case then, here or where this is called."""
    start = time.perf_counter()
    verdict = _verdict(golden, candidate, compute_dtype, only, entry)
    return replace(verdict, seconds=time.perf_counter() - start), only


def _verdict(
    golden: Path, candidate: Path, compute_dtype: str | None, only: Only, entry: dict[str, Any]
) -> CaseVerdict:
    name, function = entry["id"], entry["function"]
    path = candidate / entry["file"]
    if not os.path.lexists(path):
        return CaseVerdict(name, function, None, message=f"the candidate has no {entry['file']}")
    try:
        asked = _question(golden, entry, compute_dtype)
    except EXPECTED_ERRORS as error:
        told = reason(error).replace(str(golden / entry["file"]), entry["file"])
        return CaseVerdict(name, function, passed=False, message=f"the golden case is unusable: {told}")
    try:
        tensors = _read(path)
    except (OSError, ValueError) as error:
        message = str(error).replace(str(path), path.name)
        unreadable = TensorVerdict("file", passed=False, fault="unreadable", message=message)
        return CaseVerdict(name, function, passed=False, tensors=(unreadable,))
    return judged(asked, only.of(asked, tensors))


def _question(golden: Path, entry: dict[str, Any], compute_dtype: str | None) -> Question:
    case, expected = read_case(golden, entry)
    return question(case, compute_dtype, expected)


def _read(path: Path) -> dict[str, Any]:
    # A pipe would be waited for, and a folder is told in other words on every system.
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    return load_tensors(path)
