"""The command line: refloss compute | golden | compare | list."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

import refloss
from refloss.commands import compute, golden
from refloss.commands.progress import progress
from refloss.definitions import definitions
from refloss.messages import EXPECTED_ERRORS, printable, reason
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from typing import TextIO


app = typer.Typer(
    name="refloss",
    help="The right loss and the right gradients of arrays in files.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(compute.app, name="compute")
app.add_typer(golden.app, name="golden")

_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


def main() -> None:
    """Run the command line; whatever is wrong with files, names or options is one line and exit status 2."""
    compute.offer_functions()
    golden.offer_functions()
    try:
        status = app(standalone_mode=False)
        _flush(sys.stdout)
    except _USAGE_ERROR as error:
        status = _failed(error.format_message())  # type: ignore[attr-defined]
    except (BrokenPipeError, SystemExit):  # the latter is what Click and rich make of the former
        status = 141  # as of a command that SIGPIPE ends
    except MemoryError as error:
        status = _failed(": ".join(filter(None, ("not enough memory", str(error)))))
    except EXPECTED_ERRORS as error:
        status = _failed(reason(error))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    for stream in (sys.stdout, sys.stderr):
        try:
            _flush(stream)
        except OSError:  # Python would try again when it ends, and tell of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def _flush(stream: TextIO | None) -> None:
    if stream is not None:  # as it is where it was closed
        stream.flush()


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):  # of a reader that has gone
        print(f"refloss: {printable(message)}", file=sys.stderr)
    return 2


@app.command("compare")
def compare_folders(
    golden: Annotated[Path, typer.Argument(metavar="GOLDEN", help="Folder of golden files.")],
    candidate: Annotated[
        Path, typer.Argument(metavar="CANDIDATE", help="Folder of files of the same names with loss and grad.<name>.")
    ],
    compute_dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="float64, float32, tf32, float16 or bfloat16; if not given, float32, and float64 for its cases."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON instead of a table.")] = False,
    junit: Annotated[Optional[Path], typer.Option(help="A JUnit XML file to write.")] = None,  # noqa: UP045
    html: Annotated[Optional[Path], typer.Option(help="A report to write, with charts.")] = None,  # noqa: UP045
) -> None:
    """Judge an implementation by the files that it made of golden inputs.

    Exit status 0 where every case that it brings passes, 1 where one fails, 2 where nothing could be judged.
    """
    from refloss.testing.judging import compare
    from refloss.testing.report import junit as junit_file
    from refloss.testing.report import page as report_file
    from refloss.testing.report import table

    _check_choices(compute_dtype, junit, html)
    with progress("cases") as report:
        judgement = compare.judge_folders(golden, candidate, compute_dtype, report)
    if junit is not None:
        junit_file.write(junit, judgement)
    if html is not None:
        report_file.write(html, judgement, f"{candidate} against {golden}")
    if as_json:
        print(json.dumps(judgement.as_json(), indent=1, allow_nan=False))
    elif judgement.judged:
        table.show(judgement, _console(120))
    for name in compare.files_without_case(golden, candidate):
        print(f"refloss: {printable(name)}: no case has this file", file=sys.stderr)
    if not judgement.judged:
        raise ValueError(f"{candidate}: nothing to judge: it has no file of the {len(judgement.cases)} cases")
    raise typer.Exit(judgement.exit_status)


def _check_choices(compute_dtype: str | None, *outputs: Path | None) -> None:
    """Before hours of work: a type that there is, and files that can be written."""
    from refloss.error_model import COMPUTE_DTYPES

    if compute_dtype is not None and compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(f"--compute-dtype: {compute_dtype!r} is none of {', '.join(COMPUTE_DTYPES)}")
    for path in outputs:
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: is a folder")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: no such folder: {path.parent}")


def _console(width: int) -> Console:
    """A console on stdout that cuts nothing off where no terminal sets a width."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(width=None if terminal else width, highlight=False)


@app.command("list")
def list_functions(
    as_json: Annotated[bool, typer.Option("--json", help="Describe them for harnesses in other languages.")] = False,
) -> None:
    """List the losses, the model kinds that use them, and their differentiable inputs."""
    if as_json:
        print(json.dumps(definitions(), indent=1, allow_nan=False, ensure_ascii=False))
        return
    console = _console(240)
    table = Table(box=None, pad_edge=False)
    for heading in ("function", "gradients", "LOSS_MAPPING keys", "what it is"):
        table.add_column(heading, no_wrap=heading == "function", overflow="fold")
    for name, function in FUNCTIONS.items():
        specification = function.specification
        told = (specification.differentiable, specification.keys)
        table.add_row(name, *(", ".join(names) for names in told), function.summary)
    console.print(table)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """The right loss and the right gradients of arrays in files."""
    if show:
        print(f"refloss {refloss.__version__}")
        raise typer.Exit
