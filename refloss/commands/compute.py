"""refloss compute: a loss of arrays in files, its gradients, and both as a golden case."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

import refloss
from refloss import parallel
from refloss.cases.source import DTYPES
from refloss.commands import completion
from refloss.commands.arguments import answer, command, files_of, given_arguments, option
from refloss.commands.golden import add_case
from refloss.commands.groups import Command, Group
from refloss.commands.progress import progress
from refloss.commands.telling import say
from refloss.files import flattened, save_tensors
from refloss.golden import store
from refloss.registry import FUNCTIONS
from refloss.testing.verdict import plain

if TYPE_CHECKING:
    from refloss.registry import Function
    from refloss.result import LossResult

app = typer.Typer(cls=Group, help="Compute a loss of arrays in .npy, .npz or .safetensors files.", no_args_is_help=True)


def offer_functions() -> None:
    """Make a command of every loss that is registered by now."""
    offered = {each.name for each in app.registered_commands}
    others = (
        option(
            "grad_dtype",
            str,
            "Dtype of the gradients; that of the input if not given.",
            completing=completion.one_of(DTYPES),
        ),
        option("out", Path, "A .safetensors file for the loss, the gradients and the intermediates."),
        option("golden", Path, "A folder, or a .safetensors file in one, for this as a golden case: see golden add."),
        _AS_JSON,
    )
    for name, function in FUNCTIONS.items():
        if name not in offered:
            app.command(name, cls=Command)(command(name, function, _compute, *others))


_AS_JSON = inspect.Parameter(
    "as_json",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--json", help="Print loss, components and shapes, and of tokens their number, as JSON.")
    ],
)


def _compute(function: Function, arguments: dict[str, Any]) -> None:
    as_json: bool = arguments.pop("as_json")
    out: Path | None = arguments.pop("out")
    golden: Path | None = arguments.pop("golden")
    if out is not None and out.exists() and any(out.samefile(file) for file in files_of(arguments)):
        raise ValueError(f"{out}: is an input too")
    given = given_arguments(function, arguments)
    if golden is not None:
        if out is not None or "grad_dtype" in given:
            raise ValueError("--golden: takes neither --out nor --grad-dtype: its gradients have their inputs' dtypes")
        is_file = golden.suffix == ".safetensors"
        folder, name = (golden.parent, golden.stem) if is_file else (golden, function.name)
        result = add_case(function, given, folder, name)
    elif out is None:
        with progress("rows") as report, parallel.progress(report):
            result = function.call(**given, grad=False)
    else:
        if out.suffix != ".safetensors":
            raise ValueError(f"{out}: expected a file ending in .safetensors")
        if not out.parent.is_dir():
            raise ValueError(f"{out}: no such folder: {out.parent}")
        with answer(function, given, out.parent) as result:
            save_tensors(out, _result_tensors(result))
    if as_json:
        print(*_json_lines(function, given, result), sep="\n")
    else:
        say(*_lines(function, given, result))


def _result_tensors(result: LossResult) -> dict[str, Any]:
    """A result under the names that a golden file's candidate uses."""
    return {name.removeprefix("expected."): value for name, value in store.expected_tensors(result).items()}


def _lines(function: Function, given: dict[str, Any], result: LossResult) -> list[str]:
    """What there is to say of a result, a name and a number a line."""
    if np.ndim(result.loss):
        return [f"loss        {np.size(result.loss)} values, mean {_mean(result.loss, np.size(result.loss))!r}"]
    numbers = {"loss": float(result.loss)} | {name: float(value) for name, value in result.components.items()}
    numbers |= _of_tokens(function, given, result)
    width = max(12, *(len(name) + 2 for name in numbers))
    return [f"{name:<{width}}{value!r}" for name, value in numbers.items()]


def _json_lines(function: Function, given: dict[str, Any], result: LossResult) -> list[str]:
    """The same for programs, with every number of a loss that is not reduced, and inputs as float32 [2, 9, 17]."""
    arrays = {name: given[name] for name in (*function.required, *function.optional) if name in given}
    parts = {part: value for name, array in arrays.items() for part, value in flattened(name, array).items()}
    facts: dict[str, Any] = {
        "refloss": refloss.__version__,
        "function": function.name,
        "loss": np.asarray(result.loss).tolist(),
        "components": {name: np.asarray(value).tolist() for name, value in result.components.items()},
        "shapes": {part: f"{value.dtype} {list(value.shape)}" for part, value in parts.items()},
    }
    facts |= _of_tokens(function, given, result)
    return json.dumps(plain(facts), indent=1, allow_nan=False).splitlines()


def _of_tokens(function: Function, given: dict[str, Any], result: LossResult) -> dict[str, Any]:
    """How many tokens count, and their perplexity; nothing where a loss is not one of tokens."""
    if not function.specification.counts_tokens:
        return {}
    labels = result.intermediates.get("shift_labels", given["labels"])
    counted = int(np.count_nonzero(labels != given.get("ignore_index", -100)))
    mean = _mean(result.intermediates["nll"], counted)
    with np.errstate(over="ignore"):
        return {"tokens": counted, "perplexity": float(np.exp(np.longdouble(mean)))}


def _mean(losses: Any, count: int) -> float:
    """The mean of what counts; NaN of nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(losses)) / count if count else math.nan
