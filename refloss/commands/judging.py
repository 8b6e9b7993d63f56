"""The commands that judge: compare of files, check of a Python function."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from refloss.commands import cluster, completion
from refloss.commands.arguments import names
from refloss.commands.progress import printing_console, progress
from refloss.commands.telling import is_quiet, note
from refloss.messages import unknown
from refloss.roundoff import COMPUTE_DTYPES

if TYPE_CHECKING:
    from refloss.testing.report.judgement import Judgement

# Options of both.
_ComputeDtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="float64, float32, tf32, float16 or bfloat16; if not given, float32, and float64 for its cases.",
        autocompletion=completion.one_of(COMPUTE_DTYPES),
    ),
]
_Cases = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Ids of cases, or patterns such as '*-bfloat16', separated by commas; all if not given.",
        autocompletion=completion.several_of(completion.cases),
    ),
]
_Grads = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Gradients to judge; all if not given, none of ''."),
]
_Components = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Components to judge; all if not given, none of ''."),
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON instead of a table.")]
_Junit = Annotated[Optional[Path], typer.Option(help="A JUnit XML file to write.")]  # noqa: UP045
_Html = Annotated[Optional[Path], typer.Option(help="A report to write, with charts.")]  # noqa: UP045


def compare_folders(
    golden: Annotated[Path, typer.Argument(metavar="GOLDEN", help="Folder of golden files.")],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="Folder of files of the same names with loss and grad.<name>.")
    ],
    functions: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Functions whose cases are judged, separated by commas; all if not given.",
            autocompletion=completion.several_of(completion.functions),
        ),
    ] = None,
    cases: _Cases = None,
    grads: _Grads = None,
    components: _Components = None,
    compute_dtype: _ComputeDtype = None,
    as_json: _AsJson = False,
    junit: _Junit = None,
    html: _Html = None,
    scheduler: cluster.Scheduler = None,
) -> None:
    """Judge an implementation by the files that it made of golden inputs.

    Exit status 0 where every case that it answers passes, 1 where one fails, 2 where nothing could be judged.
    """
    from refloss.testing.judging import compare

    _check_choices(compute_dtype, junit, html)
    chosen = {"functions": names(functions, "--functions"), "cases": names(cases, "--cases")}
    chosen |= {"grads": _listed(grads), "components": _listed(components)}
    with cluster.each(scheduler) as each, progress("cases") as report:
        judgement = compare.judge_folders(golden, candidate, compute_dtype, report, each=each, **chosen)
    _tell(judgement, junit, html, as_json=as_json)
    for name in compare.files_without_case(golden, candidate):
        note(f"{name}: no case has this file")
    if not judgement.judged:
        raise ValueError(f"{candidate}: nothing to judge: it has no file of the {len(judgement.cases)} cases")
    raise typer.Exit(judgement.exit_status)


def check_function(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="A function: of a module, or of a file as in kernel.py:fn.")
    ],
    function: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="What it implements: functions of refloss, separated by commas.",
            autocompletion=completion.several_of(completion.functions),
        ),
    ] = None,
    cases: _Cases = None,
    dtypes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Dtypes of the first input: float32, bfloat16, float16, float64; all if not given.",
            autocompletion=completion.several_of(completion.dtypes),
        ),
    ] = None,
    grads: _Grads = None,
    components: _Components = None,
    compute_dtype: _ComputeDtype = None,
    framework: Annotated[
        str,
        typer.Option(
            help="What its arrays are of: numpy, torch or jax.",
            autocompletion=completion.one_of(("numpy", "torch", "jax")),
        ),
    ] = "numpy",
    as_json: _AsJson = False,
    junit: _Junit = None,
    html: _Html = None,
) -> None:
    """Judge a Python function, called as fn(inputs, parameters, grad_output), by the built-in cases.

    grad_output is the upstream gradient, which all gradients are multiplied with. The function returns (loss, grads) or
    (loss, grads, components), the latter two as mappings from names to arrays, and may raise NotImplementedError for
    what it does not have. Exit status 0 where every other case passes, 1 where one fails, 2 where nothing could be
    judged.
    """
    from refloss.testing.judging import callables, frameworks, selection, targets

    _check_choices(compute_dtype, junit, html)
    if function is None and cases is None:
        raise ValueError("Missing option '--function' (or '--cases')")
    chosen = callables.select(names(function, "--function"), names(cases, "--cases"), names(dtypes, "--dtypes"))
    arrays = frameworks.framework(framework)
    only = selection.Only(_listed(grads), _listed(components))
    # What the function prints is not the judgement.
    with contextlib.redirect_stdout(sys.stderr), progress("cases") as report:
        judging = callables.Judging(targets.function(target), arrays, None, compute_dtype, only)
        judgement = replace(judging.judgement(chosen, report), subject=target)
    _tell(judgement, junit, html, as_json=as_json)
    if not judgement.judged:
        told = f": {judgement.cases[0].id}: {judgement.cases[0].message}" if judgement.cases else ""
        raise ValueError(f"{target}: nothing to judge: it answers none of the {len(judgement.cases)} cases{told}")
    raise typer.Exit(judgement.exit_status)


def _listed(given: str | None) -> list[str] | None:
    """Names that are separated by commas, of which there may be none; None is what was not given."""
    return names(given, "") if given is None or given.strip(", ") else []


def _tell(judgement: Judgement, junit: Path | None, html: Path | None, *, as_json: bool) -> None:
    """Write and print a judgement in all the forms that are asked for."""
    from refloss.testing.report import table

    asked = replace(judgement, command=shlex.join(["refloss", *sys.argv[1:]]))
    if junit is not None:
        asked.junit(junit)
    if html is not None:
        asked.html(html)
    if as_json:
        print(json.dumps(asked.as_json(), indent=1, allow_nan=False))
    elif asked.judged and not is_quiet():
        table.show(asked, printing_console(120))


def _check_choices(compute_dtype: str | None, *outputs: Path | None) -> None:
    """Before hours of work: a type that there is, and files that can be written."""
    if compute_dtype is not None and compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(f"--compute-dtype: {unknown('compute type', [compute_dtype], COMPUTE_DTYPES)}")
    for path in outputs:
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: is a folder")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: no such folder: {path.parent}")
