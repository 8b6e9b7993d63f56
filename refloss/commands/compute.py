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
from refloss.commands import cluster, completion, on_disk
from refloss.commands.arguments import answer, command, files_of, given_arguments, option
from refloss.commands.golden import add_case
from refloss.commands.groups import Command, Group
from refloss.commands.progress import progress
from refloss.commands.telling import say
from refloss.files import flattened, load_tensors, save_tensors
from refloss.golden import store
from refloss.registry import FUNCTIONS
from refloss.result import Intermediates, LossResult
from refloss.testing.verdict import plain

if TYPE_CHECKING:
    from distributed import Client

    from refloss.registry import Function

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
        option("scheduler", str, cluster.HELP),
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
    scheduler: str | None = arguments.pop("scheduler")
    if out is not None and out.exists() and any(out.samefile(file) for file in files_of(arguments)):
        raise ValueError(f"{out}: is an input too")
    given = given_arguments(function, arguments)
    _check_outputs(given, out, golden)
    if scheduler is None:
        result = _answer(function, given, out, golden)
    else:
        with cluster.connected(scheduler) as client:
            result = _answer_of_cluster(client, function, given, out, golden)
    if as_json:
        print(*_json_lines(function, given, result), sep="\n")
    else:
        say(*_lines(function, given, result))


def _check_outputs(given: dict[str, Any], out: Path | None, golden: Path | None) -> None:
    """Before hours of work."""
    if golden is not None and (out is not None or "grad_dtype" in given):
        raise ValueError("--golden: takes neither --out nor --grad-dtype: its gradients have their inputs' dtypes")
    if out is not None and out.suffix != ".safetensors":
        raise ValueError(f"{out}: expected a file ending in .safetensors")
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"{out}: no such folder: {out.parent}")


def _answer(function: Function, given: dict[str, Any], out: Path | None, golden: Path | None) -> LossResult:
    """Compute what is asked for, and write it."""
    if golden is not None:
        is_file = golden.suffix == ".safetensors"
        folder, name = (golden.parent, golden.stem) if is_file else (golden, function.name)
        result = add_case(function, given, folder, name)
    elif out is None:
        with progress("rows") as report, parallel.progress(report):
            result = function.call(**given, grad=False)
    else:
        with answer(function, given, out.parent) as result:
            save_tensors(out, _result_tensors(result))
    return result


def _answer_of_cluster(
    client: Client, function: Function, given: dict[str, Any], out: Path | None, golden: Path | None
) -> LossResult:
    """The same by workers, without gradients: in chunks of rows where that can be, else as one call."""
    result = None
    if golden is None and function.specification.in_parts:
        result = _in_chunks(client, function, given, out)
    if result is None:
        files = [None if path is None else path.absolute() for path in (out, golden)]
        result = cluster.call(client, _answer_of_worker, function.name, on_disk.places(given), *files)
    return result


def _in_chunks(client: Client, function: Function, given: dict[str, Any], out: Path | None) -> LossResult | None:
    """A result that is all in its file, or what is printed of it; None where arguments do not come in chunks."""
    from refloss.commands import chunks

    with progress("chunks") as report, cluster.told(client, report) as topic:
        lazy = chunks.lazily(given, topic, report)
        try:
            tensors = _result_tensors(function.call(**lazy, **({"grad": False} if out is None else {})))
        except (TypeError, ValueError):
            # Shapes that only a whole call takes; what is wrong with others it tells as well, in its own words.
            return None
        if out is None:
            return _result(chunks.gathered(client, {name: tensors[name] for name in _printed(function, tensors)}))
        chunks.write(client, tensors, out)
    written = load_tensors(out)
    return _result({name: written[name] for name in tensors})


def _answer_of_worker(name: str, places: dict[str, Any], out: Path | None, golden: Path | None) -> LossResult:
    function = FUNCTIONS[name]
    tensors = _result_tensors(_answer(function, on_disk.mapped(places), out, golden))
    return _result({name: tensors[name] for name in _printed(function, tensors)})


def _result_tensors(result: LossResult) -> dict[str, Any]:
    """A result under the names that a golden file's candidate uses."""
    return {name.removeprefix("expected."): value for name, value in store.expected_tensors(result).items()}


def _result(tensors: dict[str, Any]) -> LossResult:
    """The inverse, without gradients."""
    parts = {
        kind: {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
        for kind in ("component", "intermediate")
    }
    return LossResult(tensors["loss"], {}, parts["component"], Intermediates(parts["intermediate"]))


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


def _printed(function: Function, tensors: dict[str, Any]) -> list[str]:
    """The names of what is printed, and of what that is made of."""
    of_tokens = ("intermediate.nll", "intermediate.shift_labels") if function.specification.counts_tokens else ()
    return [name for name in tensors if name in ("loss", *of_tokens) or name.startswith("component.")]


def _mean(losses: Any, count: int) -> float:
    """The mean of what counts; NaN of nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sum(losses)) / count if count else math.nan
