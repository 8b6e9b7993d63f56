"""refloss compute: a loss of arrays in files, its gradients, and both as a golden case."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from refloss import parallel
from refloss.commands.arguments import answer, command, files_of, given_arguments, option
from refloss.commands.golden import add_case
from refloss.commands.progress import progress
from refloss.files import save_tensors
from refloss.golden import store
from refloss.registry import FUNCTIONS

if TYPE_CHECKING:
    from refloss.registry import Function
    from refloss.result import LossResult

app = typer.Typer(help="Compute a loss of arrays in .npy, .npz or .safetensors files.", no_args_is_help=True)


def offer_functions() -> None:
    """Make a command of every loss that is registered by now."""
    offered = {each.name for each in app.registered_commands}
    others = (
        option("grad_dtype", str, "Dtype of the gradients; that of the input if not given."),
        option("out", Path, "A .safetensors file for the loss, the gradients and the intermediates."),
        option("golden", Path, "A folder, or a .safetensors file in one, for this as a golden case: see golden add."),
    )
    for name, function in FUNCTIONS.items():
        if name not in offered:
            app.command(name)(command(name, function, _compute, *others))


def _compute(function: Function, arguments: dict[str, Any]) -> None:
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
    _print_result(function, given, result)


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
