"""refloss golden: golden files written, extended and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from refloss.commands import completion
from refloss.commands.arguments import answer, command, given_arguments, names, option
from refloss.commands.groups import Command, Group
from refloss.commands.progress import progress
from refloss.commands.telling import say
from refloss.error_model import COMPUTE_DTYPES
from refloss.golden import store
from refloss.messages import printable, unknown
from refloss.registry import FUNCTIONS
from refloss.testing.judging.allowances import written_beside
from refloss.testing.judging.called import called

if TYPE_CHECKING:
    from refloss.registry import Function
    from refloss.result import LossResult

app = typer.Typer(cls=Group, help="Write and check golden files.", no_args_is_help=True)
add_app = typer.Typer(cls=Group, no_args_is_help=True, subcommand_metavar="FUNCTION [OPTIONS]")
app.add_typer(add_app, name="add")

_FRESH = 20  # cases of each function, if not said otherwise
_BOUNDS = "Also write how far a candidate may be off that computes in these types, separated by commas."
_COMPUTE_DTYPES = completion.several_of(completion.compute_dtypes)


def offer_functions() -> None:
    """Make a command of every loss that is registered by now."""
    offered = {each.name for each in add_app.registered_commands}
    others = (
        option("id", str, "The case's name; the function's if not given."),
        option("bounds", str, _BOUNDS, completing=_COMPUTE_DTYPES),
    )
    for name, function in FUNCTIONS.items():
        if name not in offered:
            add_app.command(name, cls=Command)(command(name, function, _add, *others, context=True))


@app.command("write", cls=Command)
def golden_write(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files; made if it is not there.")],
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Functions to write, separated by commas; all if not given.",
            autocompletion=completion.several_of(completion.functions),
        ),
    ] = None,
    cases: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Ids of cases, or patterns such as '*-bfloat16', separated by commas; all if not given. A number is"
            " the --count.",
            autocompletion=completion.several_of(completion.cases),
        ),
    ] = None,
    dtypes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Dtypes of the first input: float32, bfloat16, float16, float64; all if not given.",
            autocompletion=completion.several_of(completion.dtypes),
        ),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Draw fresh cases from a seed, instead of those that are built in."),
    ] = None,
    count: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help=f"How many fresh cases of each function are drawn; {_FRESH} if not given."),
    ] = None,
    bounds: Annotated[Optional[str], typer.Option(help=_BOUNDS, autocompletion=_COMPUTE_DTYPES)] = None,  # noqa: UP045
) -> None:
    """Write the built-in cases, or fresh ones, with their right answers."""
    if cases is not None and cases.isdecimal() and int(cases) > 0:
        if count is not None:
            raise ValueError(f"--cases: {cases} is how many fresh cases are drawn, and so is --count {count}")
        if seed is None:
            raise ValueError(f"--cases: {cases} is how many fresh cases are drawn; give their --seed")
        count, cases = int(cases), None
    elif count is not None and seed is None:
        raise ValueError("--count: of fresh cases; give their --seed")
    functions, globs, kinds = names(only, "--only"), names(cases, "--cases"), names(dtypes, "--dtypes")
    beside = written_beside(_compute_types(bounds), folder)
    chosen = None if functions is None else set(functions)
    with progress("cases") as report:
        written = store.write(
            folder,
            chosen,
            report,
            globs=globs or (),
            dtypes=kinds or (),
            seed=seed,
            count=count or _FRESH,
            beside=beside,
        )
    say(printable(f"{written} cases written to {folder}"))


@add_app.callback()
def golden_add(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of golden files; made if it is not there.")],
) -> None:
    """Write arrays of your own as a golden case, with the right answer."""
    context.obj = folder


def _add(function: Function, arguments: dict[str, Any]) -> None:
    folder: Path = arguments.pop("context").obj
    name: str = arguments.pop("id") or function.name
    types = _compute_types(arguments.pop("bounds"))
    add_case(function, given_arguments(function, arguments), folder, name, types)
    say(printable(f"{name} written to {folder}"))


def add_case(
    function: Function, given: dict[str, Any], folder: Path, name: str, types: tuple[str, ...] = ()
) -> LossResult:
    """Write a call as a golden case with its right answer, and with bounds for some compute types."""
    store.check_new(folder, name)
    # Where the first gradient is until it is in the file.
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    with answer(function, given, there) as result:
        if result is None:
            raise ValueError("there is no loss of these arguments")
        store.add(folder, called(result)._replace(id=name), result, written_beside(types, folder))
        return result


def _compute_types(given: str | None) -> tuple[str, ...]:
    types = tuple(names(given, "--bounds") or ())
    if wrong := [name for name in types if name not in COMPUTE_DTYPES]:
        raise ValueError(f"--bounds: {unknown('compute type', wrong, COMPUTE_DTYPES)}")
    return types


@app.command("check", cls=Command)
def golden_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of golden files.")],
) -> None:
    """Recompute a folder and demand the same bits: exit status 1 where one differs."""
    with progress("cases") as report:
        outcomes = list(store.check(folder, report))
    faults = [(case, fault) for case, fault in outcomes if fault is not None]
    for case, fault in faults:
        say(printable(f"{case}: {fault}"))
    say(f"{len(outcomes) - len(faults)} of {len(outcomes)} cases have the same bits")
    if faults:
        raise typer.Exit(1)
