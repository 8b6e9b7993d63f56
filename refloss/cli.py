"""The command line: refloss compute | golden | compare | check | warm | list."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import textwrap
import traceback
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

import refloss
from refloss import compilation
from refloss.commands import compute, golden, judging, telling, warm
from refloss.commands.groups import Command, Group
from refloss.commands.progress import printing_console
from refloss.definitions import definitions
from refloss.messages import EXPECTED_ERRORS, printable, reason
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from typing import TextIO

    from rich.console import Console


app = typer.Typer(
    name="refloss",
    cls=Group,
    help="The right loss and the right gradients of arrays in files.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(compute.app, name="compute")
app.add_typer(golden.app, name="golden")
app.command("compare", cls=Command)(judging.compare_folders)
app.command("check", cls=Command)(judging.check_function)
app.command("warm", cls=Command)(warm.warm)

_TABLE = 240  # columns that a table of all functions takes
_BROKEN_PIPE = 141  # as of a command that SIGPIPE ends
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


def main() -> None:
    """Run the command line; whatever is wrong with files, names or options is one line and exit status 2."""
    with telling.one_command():
        status = _status()
    for stream in (sys.stdout, sys.stderr):
        try:
            _flush(stream)
        except OSError:  # Python would try again when it ends, and tell of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    compilation.abandon(status)
    sys.exit(status)


def _status() -> int:
    """Do what the command line says; an exception that says what is wrong is told."""
    try:
        compute.offer_functions()
        golden.offer_functions()
        status: int = app(prog_name="refloss", standalone_mode=False) or 0
        _flush(sys.stdout)
    except _USAGE_ERROR as error:
        status = _failed(error.format_message())  # type: ignore[attr-defined]
    except BrokenPipeError:
        status = _BROKEN_PIPE
    except SystemExit as error:  # also what Click and rich make of a broken pipe
        status = _BROKEN_PIPE if isinstance(error.__context__, BrokenPipeError) else int(error.code or 0)
    except MemoryError as error:
        status = _failed(": ".join(filter(None, ("not enough memory", str(error)))))
    except EXPECTED_ERRORS as error:
        status = _failed(reason(error))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    return status


def _flush(stream: TextIO | None) -> None:
    if stream is not None:  # as it is where it was closed
        stream.flush()


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):  # of a reader that has gone
        if telling.is_verbose():
            traceback.print_exc()
        print(f"refloss: {printable(message)}", file=sys.stderr)
    return 2


@app.command("list", cls=Command)
def list_functions(
    as_json: Annotated[bool, typer.Option("--json", help="Describe them for harnesses in other languages.")] = False,
) -> None:
    """List the losses, what each has gradients of, and the keys of LOSS_MAPPING that mean it."""
    if as_json:
        print(json.dumps(definitions(), indent=1, allow_nan=False, ensure_ascii=False))
    elif not telling.is_quiet():
        console = printing_console(_TABLE)
        (_print_table if console.width >= _TABLE else _print_paragraphs)(console)


def _print_table(console: Console) -> None:
    """A line for each function."""
    table = Table(box=None, pad_edge=False)
    for heading in ("function", "gradients", "LOSS_MAPPING keys", "what it is"):
        table.add_column(heading, no_wrap=heading == "function", overflow="fold")
    for name, function in FUNCTIONS.items():
        specification = function.specification
        told = (specification.differentiable, specification.keys)
        table.add_row(name, *(", ".join(names) for names in told), function.summary)
    console.print(table)


def _print_paragraphs(console: Console) -> None:
    """The same where a line has no room for all of it."""
    for name, function in FUNCTIONS.items():
        specification = function.specification
        keys = [f"LOSS_MAPPING: {', '.join(specification.keys)}"] if specification.keys else []
        told = (function.summary, f"gradients: {', '.join(specification.differentiable) or 'none'}", *keys)
        console.print(Text(name, "bold"))
        for text in told:
            lines = textwrap.wrap(text, console.width - 2, break_long_words=False, break_on_hyphens=False)
            console.print(Text(textwrap.indent("\n".join(lines), "  ")), soft_wrap=True)
        console.print()


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit; with -v also which compiled kernels.")
    ] = False,
) -> None:
    """The right loss and the right gradients of arrays in files."""
    if show:
        print(f"refloss {refloss.__version__}", *(warm.kernels_in_words() if telling.is_verbose() else ()), sep="\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise ValueError("Missing command; refloss -h lists them")
