"""How many gradient elements of every public function are correctly rounded, and how far off the worst is.

    python -m benchmarks.accuracy [--only mse,huber] [--elements 10000] [--write]

Definitions are evaluated by MPFR; tests/mpfr has them and the inputs, which are those that are hard to round:
cotangents of 1/3, targets at and near the prediction, large margins, zero crossings, tiny and large magnitudes, mixed
formats. A row of the table has the worst of its function's kinds of inputs. The table against others comes last.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import accuracy_of_others
from benchmarks.measure import machine
from benchmarks.report import PAGE, Table, console, publish
from refloss.registry import FUNCTIONS
from tests.mpfr.measure import KINDS, measured
from tests.mpfr.rounding import Tally

ELEMENTS = 1_000_000
NUMERICS = Path(__file__).parent.parent / "docs" / "numerics.md"
WORKERS = 2
SHORT_FORMATS = ("float32", "bfloat16", "float16")
# Rounding a float64 is not promised: its errors are.
LARGEST_ERROR = 2.0
Chunk = tuple[str, str, int, int]


def chunks(functions: Iterable[str], elements: int, seed: int) -> Iterator[Chunk]:
    """Function, kind, elements and seed of what a process does at a time; each kind has its share of the elements."""
    for function in functions:
        # Sizes are rounded to whole rows and scenes, some of them down.
        share = -(-elements * 103 // 100 // len(KINDS[function]))
        for kind in KINDS[function]:
            yield function, kind, share, seed


def _measured(chunk: Chunk) -> list[Tally]:
    return measured(*chunk)


def measure_all(functions: Sequence[str], elements: int, seed: int) -> list[Tally]:
    """Every kind of inputs of some functions."""
    # The processes share the machine; refloss's results do not depend on its threads.
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    found: list[Tally] = []
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool, console.status("MPFR") as status:
        work = list(chunks(functions, elements, seed))
        for (function, kind, *_), tallies in zip(work, pool.map(_measured, work), strict=True):
            status.update(f"{function}: {kind}")
            found += tallies
    return found


def is_wrong(tally: Tally) -> bool:
    """Whether a promise is broken: an element that is not rounded once, or is more than 2 ulp of float64 off."""
    return tally.worst > LARGEST_ERROR if tally.format == "float64" else tally.wrong > 0


def _share(tallies: Sequence[Tally]) -> str:
    """The least share of correctly rounded elements of any kind."""
    shares = [1 - tally.wrong / tally.size for tally in tallies if tally.size]
    return f"{100 * min(shares):.4f} %" if shares else "–"


def _worst(tallies: Sequence[Tally]) -> str:
    if not any(tally.size for tally in tallies):
        return "–"
    worst = max(tally.worst for tally in tallies if tally.size)
    return f"{worst:.6f}" if worst < 10 else f"{worst:.2g}"


def table(found: Sequence[Tally]) -> Table:
    """A row for each function."""
    rows = []
    for function, group in itertools.groupby(found, key=lambda tally: tally.function):
        tallies = list(group)
        gradients = [tally for tally in tallies if tally.name != "loss"]
        by_format = {name: [each for each in gradients if each.format == name] for name in (*SHORT_FORMATS, "float64")}
        cells = [str(sum(each.size for each in by_format["float32"]))]
        for name in SHORT_FORMATS:
            cells += [_share(by_format[name]), _worst(by_format[name])]
        cells += [_worst(by_format["float64"]), _worst([each for each in tallies if each.name == "loss"])]
        rows.append((f"`{function}`", *cells))
    columns = ("function", "elements", *itertools.chain(*((name, "ulp") for name in SHORT_FORMATS)))
    title = "Correctly rounded gradient elements of the worst kind of inputs; the worst element's error in ulp"
    return Table(title, (*columns, "float64, ulp", "loss, ulp"), rows)


def show_worst(found: Iterable[Tally], elements: int, seed: int) -> None:
    """The worst element of every kind of inputs on which a promise is broken, and how to draw it again."""
    console.print(f"python -m benchmarks.accuracy --only <function> --elements {elements} --seed {seed}", markup=False)
    for tally in sorted(filter(is_wrong, found), key=lambda each: (each.format == "float64", -each.worst)):
        share = f"{tally.wrong} of {tally.size}"
        console.print(
            f"{tally.function}, {tally.kind}: {tally.name} in {tally.format}, {share}, {tally.worst:.6g} ulp",
            f"    {tally.example}",
            sep="\n",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def main() -> None:
    """Measure, print and, with --write, document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="functions, separated by commas")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="gradient elements of each function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"into docs/{NUMERICS.name} and docs/{PAGE.name}")
    options = parser.parse_args()
    functions = options.only.split(",") if options.only else [name for name in FUNCTIONS if name in KINDS]
    unknown = sorted(set(functions) - set(KINDS))
    if unknown:
        parser.error(f"no definition of {', '.join(unknown)}; there are {', '.join(KINDS)}")
    found = measure_all(functions, options.elements, options.seed)
    show_worst(found, options.elements, options.seed)
    tables, write = (table(found),), options.write and not options.only
    publish("accuracy", machine(("refloss", "numpy", "gmpy2")), tables, "", write, NUMERICS)
    if not options.only:
        others = (accuracy_of_others.table(),)
        publish("accuracy", machine(("refloss", "numpy", "torch", "jax", "mpmath")), others, "", write)


if __name__ == "__main__":
    main()
