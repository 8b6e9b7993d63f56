"""The command line: refloss compute | golden | compare | check | list."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import numpy as np
import typer
from rich.table import Table

import refloss
from refloss import parallel
from refloss.arrays import float_array, float_dtype
from refloss.commands import judging
from refloss.commands.progress import printing_console, progress
from refloss.files import disk_array, load_nested, load_tensor, load_tensors, save_tensors
from refloss.golden import store
from refloss.messages import EXPECTED_ERRORS, printable, reason
from refloss.registry import FUNCTIONS, Function

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from refloss.result import LossResult

app = typer.Typer(
    name="refloss",
    help="The right loss and the right gradients of arrays in files.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
compute_app = typer.Typer(help="Compute a loss of arrays in .npy, .npz or .safetensors files.", no_args_is_help=True)
golden_app = typer.Typer(help="Write and check golden files.", no_args_is_help=True)
app.add_typer(compute_app, name="compute")
app.add_typer(golden_app, name="golden")

app.command("compare")(judging.compare_folders)
app.command("check")(judging.check_function)

_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0].__bases__[0]


def main() -> None:
    """Run the command line; whatever is wrong with files, names or options is one line and exit status 2."""
    _offer_functions()
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parameter(name: str, kind: Any, help_text: str) -> inspect.Parameter:
    annotation = Annotated[Optional[kind], typer.Option(_option(name), help=help_text)]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_SOURCE = inspect.Parameter(
    "source",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="FILE", help="File of all the arrays for which no other file is named."),
    ],
)


def _kind(key: str, kind: type) -> tuple[type, str]:
    """How an argument is given: a mapping as JSON."""
    if kind is dict:
        return str, f"As the function's {key}: a JSON file, or JSON itself."
    return kind, f"As the function's {key}."


def _mapping(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--{name}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--{name}: holds a {type(value).__name__}; expected names and values")
    return value


def _compute_command(name: str, function: Function) -> Callable[..., None]:
    """A command with an option for every argument of a function."""
    parameters = [
        _SOURCE,
        *(_parameter(array, Path, f"File of {array}.") for array in (*function.required, *function.optional)),
        *(_parameter(key, *_kind(key, kind)) for key, kind in function.parameters.items()),
        _parameter("grad_output", float, "The loss's cotangent; 1 if not given."),
        _parameter("grad_dtype", str, "Dtype of the gradients; that of the input if not given."),
        _parameter("out", Path, "A .safetensors file for the loss, the gradients and the intermediates."),
    ]

    def command(**arguments: Any) -> None:
        _compute(function, arguments)

    command.__doc__ = function.summary
    command.__name__ = name
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _compute(function: Function, arguments: dict[str, Any]) -> None:
    out: Path | None = arguments.pop("out")
    source: Path | None = arguments.pop("source")
    given = {name: value for name, value in arguments.items() if value is not None}
    files = [file for file in (source, *given.values()) if _is_file(file)]
    if out is not None and out.exists() and any(out.samefile(file) for file in files):
        raise ValueError(f"{out}: is an input too")
    given.update(_arrays(function, given, source))
    known = inspect.signature(function.call).parameters
    for name, kind in function.parameters.items():
        if kind is dict and name in given:
            given[name] = _mapping(given[name], name)
        elif name not in given and known[name].default is inspect.Parameter.empty:
            raise ValueError(f"Missing option '{_option(name)}'")
    with progress("rows") as report, parallel.progress(report):
        if out is None:
            _print_result(function, given, function.call(**given, grad=False))
            return
        if out.suffix != ".safetensors":
            raise ValueError(f"{out}: expected a file ending in .safetensors")
        if not out.parent.is_dir():
            raise ValueError(f"{out}: no such folder: {out.parent}")
        with _gradient_on_disk(function, given, out.parent) as buffer:
            result = function.call(**given, **buffer)
            save_tensors(out, _result_tensors(result))
    _print_result(function, given, result)


def _arrays(function: Function, given: dict[str, Any], source: Path | None) -> dict[str, Any]:
    """A function's arrays: each from the file that is named for it, else from the source of all."""
    stored = {} if source is None else load_tensors(source)
    names = {name.removeprefix("input.").partition(".")[0] for name in stored}
    loaded = {}
    for name in (*function.required, *function.optional):
        file = given.get(name, source if name in names else None)
        if file is not None:
            loaded[name] = (load_nested if name in function.nested else load_tensor)(file, name)
        elif name in function.required:
            raise ValueError(f"Missing option '{_option(name)}'" + (f": {source} has no {name}" if source else ""))
    return loaded


def _is_file(value: Any) -> bool:
    return isinstance(value, Path) and value.is_file()


@contextlib.contextmanager
def _gradient_on_disk(function: Function, given: dict[str, Any], folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """A function's out argument, where it has one: its first gradient may be larger than memory."""
    if "out" not in inspect.signature(function.call).parameters:
        yield {}
        return
    name = function.differentiable[0]
    like = float_array(given[name], name)
    with disk_array(folder, like.shape, float_dtype(given.get("grad_dtype", like.dtype), "grad_dtype")) as buffer:
        yield {"out": buffer}


def _result_tensors(result: LossResult) -> dict[str, Any]:
    """A result under the names that a golden file's candidate uses."""
    return {name.removeprefix("expected."): value for name, value in store.expected_tensors(result).items()}


def _print_result(function: Function, given: dict[str, Any], result: LossResult) -> None:
    if np.ndim(result.loss):
        print(f"loss        {np.size(result.loss)} values, mean {_mean(result.loss, np.size(result.loss))!r}")
        return
    print(f"loss        {float(result.loss)!r}")
    width = max([12, *(len(name) + 2 for name in result.components)])
    for name, value in result.components.items():
        print(f"{name:<{width}}{float(value)!r}")
    if not function.specification.counts_tokens:
        return
    labels = result.intermediates.get("shift_labels", given["labels"])
    counted = int(np.count_nonzero(labels != given.get("ignore_index", -100)))
    mean = _mean(result.intermediates["nll"], counted)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(np.longdouble(mean)))
    print(f"tokens      {counted}")
    print(f"perplexity  {perplexity!r}")


def _mean(losses: Any, count: int) -> float:
    """The mean of what counts; NaN of nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(losses)) / count if count else math.nan


def _offer_functions() -> None:
    """Make a command of every loss that is registered by now."""
    offered = {command.name for command in compute_app.registered_commands}
    for name, function in FUNCTIONS.items():
        if name not in offered:
            compute_app.command(name)(_compute_command(name, function))


@golden_app.command("write")
def golden_write(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files; made if it is not there.")],
    only: Annotated[str, typer.Option(help="Functions to write, separated by commas; all if not given.")] = "",
) -> None:
    """Write the built-in cases with their right answers."""
    names = {name.strip() for name in only.split(",") if name.strip()}
    with progress("cases") as report:
        count = store.write(folder, names or None, report)
    print(printable(f"{count} cases written to {folder}"))


@golden_app.command("check")
def golden_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of golden files.")],
) -> None:
    """Recompute a folder and demand the same bits: exit status 1 where one differs."""
    with progress("cases") as report:
        outcomes = list(store.check(folder, report))
    faults = [(case, fault) for case, fault in outcomes if fault is not None]
    for case, fault in faults:
        print(printable(f"{case}: {fault}"))
    print(f"{len(outcomes) - len(faults)} of {len(outcomes)} cases have the same bits")
    if faults:
        raise typer.Exit(1)


@app.command("list")
def list_functions() -> None:
    """List the losses, the model kinds that use them, and their differentiable inputs."""
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
) -> None:
    """The right loss and the right gradients of arrays in files."""
    if show:
        print(f"refloss {refloss.__version__}")
        raise typer.Exit
