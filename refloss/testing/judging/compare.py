"""A folder of candidate files against a folder of golden ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from refloss.files import load_tensors
from refloss.golden.store import read_case, read_manifest
from refloss.messages import EXPECTED_ERRORS, reason
from refloss.testing.judging.diagnosing import diagnosed
from refloss.testing.judging.judge import judge, question
from refloss.testing.verdict import CaseVerdict, Judgement, TensorVerdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from refloss.testing.verdict import Question


def judge_folders(
    golden: Path,
    candidate: Path,
    compute_dtype: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Judgement:
    """Every case of a golden folder; the candidate's file for it has the name of the golden file.

    What is wrong with a file is a case that fails; only a folder or a manifest that cannot be read is a ValueError.
    """
    entries = read_manifest(golden)["cases"]
    if not candidate.is_dir():
        raise ValueError(f"{candidate}: {'not a folder' if candidate.exists() else 'no such folder'}")
    verdicts = []
    for entry in entries:
        verdicts.append(_judge_case(golden, candidate, entry, compute_dtype))
        if report is not None:
            report(1, len(entries))
    by_id = {entry["id"]: entry for entry in entries}
    return Judgement(diagnosed(verdicts, lambda name: _question(golden, by_id[name], compute_dtype)), compute_dtype)


def files_without_case(golden: Path, candidate: Path) -> list[str]:
    """The names in a candidate's folder that no case has."""
    known = {entry["file"] for entry in read_manifest(golden)["cases"]}
    return sorted(path.name for path in candidate.iterdir() if path.name not in known)


def _judge_case(golden: Path, candidate: Path, entry: dict[str, Any], compute_dtype: str | None) -> CaseVerdict:
    name, function = entry["id"], entry["function"]
    path = candidate / entry["file"]
    if not os.path.lexists(path):
        return CaseVerdict(name, function, None, message=f"the candidate has no {entry['file']}")
    try:
        asked = _question(golden, entry, compute_dtype)
    except EXPECTED_ERRORS as error:
        return CaseVerdict(name, function, passed=False, message=f"the golden case is unusable: {reason(error)}")
    try:
        tensors = _read(path)
    except (OSError, ValueError) as error:
        message = str(error).replace(str(path), path.name)
        unreadable = TensorVerdict("file", passed=False, fault="unreadable", message=message)
        return CaseVerdict(name, function, passed=False, tensors=(unreadable,))
    return judge(asked, tensors)


def _question(golden: Path, entry: dict[str, Any], compute_dtype: str | None) -> Question:
    case, expected = read_case(golden, entry)
    return question(case, compute_dtype, expected)


def _read(path: Path) -> dict[str, Any]:
    # A pipe would be waited for, and a folder is told in other words on every system.
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    return load_tensors(path)
