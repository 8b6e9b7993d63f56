"""A function's arguments on the command line: arrays from files, numbers and words, mappings as JSON."""

from __future__ import annotations

import contextlib
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from refloss import parallel
from refloss.commands import completion
from refloss.commands.progress import progress
from refloss.definitions import shapes
from refloss.files import load_listed, load_nested, load_tensor, load_tensors
from refloss.golden import store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.commands.completion import Completing
    from refloss.registry import Function
    from refloss.result import LossResult

_SOURCE = inspect.Parameter(
    "source",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="FILE", help="File of all the arrays for which no other file is named."),
    ],
)


def command(
    name: str, function: Function, run: Callable[..., None], *others: inspect.Parameter, context: bool = False
) -> Callable[..., None]:
    """A command that calls run(function, arguments): an option for every argument of a function, and others.

    With a context, Click's is among the arguments.
    """
    known = inspect.signature(function.call).parameters
    parameters = [
        _SOURCE,
        *(option(array, Path, _told_array(function, array)) for array in (*function.required, *function.optional)),
        *(_parameter(function, key, known[key].default) for key in function.parameters),
        option(
            "grad_output",
            str,
            "The upstream gradient, which all gradients are multiplied with: a number, a file, or a mapping of"
            " components as JSON; 1 if not given.",
        ),
        *others,
    ]
    if context:
        parameters.insert(0, inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

    def call(**arguments: Any) -> None:
        run(function, arguments)

    call.__doc__ = function.summary
    call.__name__ = name
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def option(
    name: str, kind: Any, help_text: str, *, denied: bool = False, completing: Completing | None = None
) -> inspect.Parameter:
    """An option that may be left out; one that is true then has another to deny it."""
    flag = f"{_flag(name)}/{_flag(f'no_{name}')}" if denied else _flag(name)
    annotation = Annotated[Optional[kind], typer.Option(flag, help=help_text, autocompletion=completing)]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _told_array(function: Function, name: str) -> str:
    """What is in a file, as far as a line tells it."""
    if name in function.nested:
        return f"File of {name}, a list: its parts are called {name}.0 and so on."
    known = shapes(function.specification, name)
    told = " or ".join(f"[{', '.join(shape)}]" for shape in known)
    return f"File of {name}, {'of any shape' if ['...'] in known else told}."


def _parameter(function: Function, key: str, default: Any) -> inspect.Parameter:
    """The option of an argument that is no array: a mapping is given as JSON."""
    kind, parameter = function.parameters[key], function.specification.parameters[key]
    if kind is dict:
        return option(key, str, f"The function's {key}: a JSON file, or JSON itself.")
    words = tuple(str(word) for word in parameter.words or parameter.values) if kind is str else ()
    told = f": {', '.join(words)}" if words else ""
    otherwise = "" if default in (None, inspect.Parameter.empty) or kind is bool else f"; {default} if not given"
    completing = completion.one_of(words) if words else None
    return option(key, kind, f"The function's {key}{told}{otherwise}.", denied=default is True, completing=completing)


def names(given: str | None, flag: str) -> list[str] | None:
    """Names that are separated by commas; None is what was not given, and none at all is an error."""
    if given is None:
        return None
    listed = [name.strip() for name in given.split(",") if name.strip()]
    if not listed:
        raise ValueError(f"{flag} names nothing; leave it out for all")
    return listed


def files_of(arguments: dict[str, Any]) -> list[Path]:
    """The files among some arguments."""
    return [value for value in arguments.values() if isinstance(value, Path) and value.is_file()]


def given_arguments(function: Function, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a function is to be called with; source is a file of arrays. Arrays are mapped where they can be."""
    source: Path | None = arguments.get("source")
    given = {name: value for name, value in arguments.items() if value is not None and name != "source"}
    given.update(_arrays(function, given, source))
    known = inspect.signature(function.call).parameters
    for name, kind in function.parameters.items():
        if kind is dict and name in given:
            given[name] = _mapping(given[name], name)
        elif name not in given and known[name].default is inspect.Parameter.empty:
            raise ValueError(f"Missing option '{_flag(name)}'")
    if "grad_output" in given:
        given["grad_output"] = _upstream_gradient(given["grad_output"])
    return given


def _arrays(function: Function, given: dict[str, Any], source: Path | None) -> dict[str, Any]:
    """A function's arrays: each from the file that is named for it, else from the source of all."""
    stored = {} if source is None else load_tensors(source)
    names = {name.removeprefix("input.").partition(".")[0] for name in stored}
    loaded = {}
    for name in (*function.required, *function.optional):
        file = given.get(name, source if name in names else None)
        if file is not None:
            loaded[name] = _loader(function, name)(file, name)
        elif name in function.required:
            raise ValueError(f"Missing option '{_flag(name)}'" + (f": {source} has no {name}" if source else ""))
    return loaded


def _loader(function: Function, name: str) -> Callable[[Path, str], Any]:
    if name in function.nested:
        return load_nested
    return load_listed if name in function.listed else load_tensor


def _mapping(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_flag(name)}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{_flag(name)}: holds a {type(value).__name__}; expected names and values")
    return value


def _upstream_gradient(text: str) -> Any:
    """A number; an array of a file; weights of components by their names."""
    with contextlib.suppress(ValueError):
        return float(text)
    if text.lstrip().startswith("{") or text.endswith(".json"):
        return _mapping(text, "grad_output")
    if not Path(text).suffix:
        raise ValueError(f"--grad-output is {text!r}; expected a number, a file, or a mapping as JSON")
    return load_tensor(Path(text), "grad_output")


@contextlib.contextmanager
def answer(function: Function, given: dict[str, Any], folder: Path) -> Iterator[LossResult]:
    """The result of a function, whose first gradient is on disk, in a folder: it may be larger than memory."""
    with (
        progress("rows") as report,
        parallel.progress(report),
        store.gradient_on_disk(function, given, folder) as buffer,
    ):
        yield function.call(**given, **buffer)
