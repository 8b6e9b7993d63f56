"""The command line: refloss compute | golden | compare | check | warm | list."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import refloss
from refloss import compilation
from refloss.commands import compute, golden, judging, warm
from refloss.commands.progress import printing_console
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
app.command("compare")(judging.compare_folders)
app.command("check")(judging.check_function)
app.command("warm")(warm.warm)

_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


def main() -> None:
    """Run the command line; whatever is wrong with files, names or options is one line and exit status 2."""
    try:
        compute.offer_functions()
        golden.offer_functions()
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
    compilation.abandon(status)
    sys.exit(status)


def _flush(stream: TextIO | None) -> None:
    if stream is not None:  # as it is where it was closed
        stream.flush()


def _failed(message: str) -> int:
    with contextlib.suppress(OSError):  # of a reader that has gone
        print(f"refloss: {printable(message)}", file=sys.stderr)
    return 2


@app.command("list")
def list_functions(
    as_json: Annotated[bool, typer.Option("--json", help="Describe them for harnesses in other languages.")] = False,
) -> None:
    """List the losses, the model kinds that use them, and their differentiable inputs."""
    if as_json:
        print(json.dumps(definitions(), indent=1, allow_nan=False, ensure_ascii=False))
        return
    console = printing_console(240)
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
    verbose: Annotated[bool, typer.Option("--verbose", help="With --version: and which compiled kernels.")] = False,
) -> None:
    """The right loss and the right gradients of arrays in files."""
    if verbose and not show:
        raise ValueError("--verbose: says more with --version")
    if show:
        print(f"refloss {refloss.__version__}", *(warm.kernels_in_words() if verbose else ()), sep="\n")
        raise typer.Exit
