"""The pages of the API reference: every public name, written from the registry before Sphinx reads its sources."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

import refloss
import refloss.testing
from docs._ext.docstrings import as_rst, marked
from refloss import cli, mapping
from refloss.definitions import shapes
from refloss.homes import homes
from refloss.registry import FUNCTIONS
from refloss.specification import MatchingHead
from refloss.testing import strategies

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from refloss.registry import Function
    from refloss.specification import Argument

DOCS = Path(__file__).parents[1]
FOLDER = DOCS / "api"


class Page(NamedTuple):
    """A page that is no function's: objects with an introduction."""

    name: str
    title: str
    text: str
    objects: tuple[str, ...]


OTHERS = (
    Page(
        "results",
        "Results, threads and mappings",
        "What every loss returns, and what is neither a loss nor judges one.",
        (
            "refloss.LossResult",
            "refloss.result.Intermediates",
            "refloss.result.Call",
            "refloss.result.MatchedLayer",
            "refloss.LOSS_MAPPING",
            "refloss.POLICY_PRESETS",
            "refloss.get_num_threads",
            "refloss.set_num_threads",
        ),
    ),
    Page(
        "ranks",
        "Rows on several ranks",
        "Classes on several ranks: :py:obj:`refloss.vocab_parallel_cross_entropy`. :doc:`/many_machines` has both.",
        ("refloss.shards", "refloss.heads.parts.row_shards.Ranks", "refloss.heads.parts.row_shards.Rank"),
    ),
    Page(
        "testing",
        "refloss.testing",
        "Judges of implementations: :doc:`/pytest`, :doc:`/metamorphic`. What they allow: :doc:`/tolerances`.",
        (
            *(f"refloss.testing.{name}" for name in refloss.testing.__all__ if name != "strategies"),
            *(f"refloss.testing.strategies.{name}" for name in strategies.__all__),
        ),
    ),
    Page(
        "files",
        "Arrays in files",
        "What golden files and the command line are read and written by.",
        tuple(f"refloss.files.{name}" for name in ("load_tensor", "load_tensors", "save_tensors", "nested")),
    ),
    Page(
        "own_losses",
        "A loss of one's own",
        "What a loss is registered by: :doc:`/contributing` has the recipe.",
        (
            "refloss.loss.loss",
            *(
                f"refloss.specification.{name}"
                for name in ("Specification", "Elementwise", "Softmax", "MatchingHead", "Argument", "Parameter", "Part")
            ),
        ),
    ),
)


def family(function: Function) -> str:
    """What a function is listed under: what its first argument holds, or that it is a model's."""
    first = function.specification.arguments[next(iter(function.specification.arguments))]
    if isinstance(function.specification, MatchingHead):
        return "Heads that match"
    if function.call.__module__.startswith("refloss.heads."):
        return "Other heads of models"
    activation = {None: "", "sigmoid": ", sigmoid of each", "softmax": ", softmax of a row"}[first.activation]
    return f"Losses of {first.role}{activation}"


def functions() -> dict[str, Function]:
    """refloss's own, in their order."""
    return {name: function for name, function in FUNCTIONS.items() if name in homes()}


def families() -> dict[str, list[Function]]:
    """Functions by family, in the order of the first of each."""
    found: dict[str, list[Function]] = {}
    for function in functions().values():
        found.setdefault(family(function), []).append(function)
    return found


def public() -> set[str]:
    """Every name that has an entry."""
    return {f"refloss.{name}" for name in functions()} | {name for page in OTHERS for name in page.objects}


def files() -> dict[str, str]:
    """Every page of the reference by the name of its file."""
    written = {"index.rst": "\n".join(_index())}
    for name, each in families().items():
        written[f"{_slug(name)}.rst"] = "\n".join(_family(name, each))
    for function in functions().values():
        written[f"{function.name}.rst"] = "\n".join(_function(function))
    for page in OTHERS:
        written[f"{page.name}.rst"] = "\n".join(_objects(page))
    written["command_line.rst"] = "\n".join(_commands())
    return written


def _index() -> Iterator[str]:
    yield from _titled("API reference")
    yield from ("Every public name, from its docstring: formula, gradient, shapes, edges and errors.", "")
    for name, each in families().items():
        yield from _titled(name, "-")
        yield from _list(each)
    yield from _titled("More than losses", "-")
    yield from (f"- :doc:`{page.title} <{page.name}>`: {page.text}" for page in OTHERS)
    yield from ("- :doc:`command_line`: what it tells of itself.", "")
    yield from _toctree([*map(_slug, families()), *(page.name for page in OTHERS), "command_line"])


def _family(name: str, each: Sequence[Function]) -> Iterator[str]:
    yield from _titled(name)
    yield from _list(each)
    yield from _toctree([function.name for function in each])


def _list(each: Iterable[Function]) -> Iterator[str]:
    """A line of each function."""
    for function in each:
        yield f"- :py:func:`~refloss.{function.name}`: {marked(function.summary)}"
    yield ""


def _function(function: Function) -> Iterator[str]:
    yield from _titled(function.name)
    yield from (f".. autofunction:: refloss.{function.name}", "")
    yield from _facts(function)
    derivation = inspect.getdoc(inspect.getmodule(function.call)) or ""
    if derivation.count("\n") > 1:
        yield from _titled("Derivation", "-")
        yield from (*as_rst(derivation.split("\n"), public()), "")
    if pages := mentions(function.name):
        yield from _titled("Pages", "-")
        yield from (f"- :doc:`/{page}`" for page in pages)
        yield ""


def _facts(function: Function) -> Iterator[str]:
    """What a specification says of a function."""
    specification = function.specification
    yield from _titled("Facts", "-")
    yield from (".. list-table::", "   :header-rows: 1", "")
    yield from _row("argument", "holds", "shapes", "gradient", "may be left out")
    for name, argument in specification.arguments.items():
        axes = "" if argument.nested else " or ".join(f"[{', '.join(shape)}]" for shape in shapes(specification, name))
        yield from _row(f"``{name}``", _held(argument), axes, *map(_yes, (argument.differentiable, argument.optional)))
    yield ""
    told = {
        "follows": specification.follows,
        "LOSS_MAPPING": ", ".join(specification.keys),
        "a mean divides by": specification.mean,
        "components": ", ".join(specification.components),
        "intermediates": ", ".join(specification.intermediates),
    }
    for key, value in told.items():
        if value:
            yield f":{key}: {marked(value)}"
    yield ""


def _held(argument: Argument) -> str:
    return f"labels of {argument.of}" if argument.role == "labels" else argument.role


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _commands() -> Iterator[str]:
    """What every command says when it is asked for help; those of single functions follow from their reference."""
    yield from _titled("Command line")
    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        below = getattr(command, "commands", {})
        for path, each in {name: command, **{f"{name} {one}": below[one] for one in below}}.items():
            text = each.get_help(typer.Context(each, info_name=f"refloss {path}", terminal_width=78))
            yield from _titled(f"refloss {path}", "-")
            yield from (".. code-block:: text", "", *(f"   {line}" for line in text.split("\n")), "")


def _objects(page: Page) -> Iterator[str]:
    yield from _titled(page.title)
    yield from (page.text, "")
    for name in page.objects:
        yield from _described(name)


def _described(name: str) -> Iterator[str]:
    """The directive of an object, of which only classes have members."""
    value = located(name)
    if isinstance(value, type):
        members = _members(value)
        yield from (f".. autoclass:: {name}", *([f"   :members: {', '.join(members)}"] if members else []), "")
    elif inspect.isroutine(value):
        yield from (f".. autofunction:: {name}", "")
    else:
        yield from (f".. py:data:: {name}", "")
        yield from (f"   {line}" for line in as_rst(_told(value).split("\n"), public()))
        yield ""


def _members(value: type) -> list[str]:
    """The public methods and properties that a class has of refloss, not of what it is built on."""
    own = [each for each in value.__mro__ if each.__module__.startswith("refloss.")]
    named = {name: member for each in reversed(own) for name, member in vars(each).items()}
    return [name for name, member in named.items() if not name.startswith("_") and _is_method(member)]


def _is_method(member: object) -> bool:
    return isinstance(member, property | functools.cached_property | classmethod) or inspect.isfunction(member)


def _told(value: Any) -> str:
    """What an object is that is no class and no function: its class says so, or else what it holds."""
    if value is refloss.LOSS_MAPPING:
        return f"{mapping.__doc__}\n\n{', '.join(f'`{key}`' for key in value)}."
    if isinstance(value, tuple):
        return f"{', '.join(f'`{each}`' for each in value)}."
    return inspect.getdoc(type(value)) or ""


def located(name: str) -> Any:
    """The object of a dotted name."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def mentions(name: str) -> list[str]:
    """The pages that speak of a function by its full name."""
    pages = sorted(DOCS.glob("*.md")) + sorted(DOCS.glob("how_to/*.md"))
    told = re.compile(rf"\brefloss\.{name}\b")
    return [page.relative_to(DOCS).with_suffix("").as_posix() for page in pages if told.search(page.read_text("utf-8"))]


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower())


def _titled(title: str, rule: str = "=") -> list[str]:
    return [title, rule * len(title), ""]


def _row(*cells: str) -> Iterator[str]:
    for k, cell in enumerate(cells):
        yield f"   {'-' if k else '*'} - {cell}".replace("   - -", "     -")


def _toctree(names: Iterable[str]) -> list[str]:
    return [".. toctree::", "   :hidden:", "", *(f"   {name}" for name in names), ""]


def write(_app: Any, _config: object) -> None:
    """Write what has changed, and remove what is of no function any more."""
    FOLDER.mkdir(exist_ok=True)
    written = files()
    for path in FOLDER.iterdir():
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def convert(_app: Any, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """A docstring before it is read."""
    lines[:] = as_rst(lines, public())


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's way in."""
    app.connect("config-inited", write)
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
