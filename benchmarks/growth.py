"""How time and memory grow with rows and classes, from a thousand elements to a thousand million, and with threads.

Run as `python -m benchmarks.growth [--write]`. It needs some 12 GB of memory.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import refloss
from benchmarks.measure import in_fresh_process, machine, peak_memory
from benchmarks.report import PAGE, Aim, Table, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = PAGE.parent / "img" / "growth.svg"
INK = "#808080"
COLOURS = {"rows of 1000 classes": "#0072b2", "1000 rows": "#d55e00", "mse": "#009e73"}
POWERS = tuple(range(3, 10))
# A large problem takes a second a call.
SECONDS, MOST_CALLS, FEWEST_CALLS = 0.5, 200, 3
THREADS = (1, 2)
AIM = 1.85


class Point(NamedTuple):
    """Seconds of a call with one thread and with two, and bytes beyond its inputs and gradient."""

    what: str
    elements: int
    seconds: tuple[float, float]
    extra: int


def measure(what: str, elements: int) -> Point:
    """A loss and its gradient, written into an existing array."""
    call = _mse(elements) if what == "mse" else _cross_entropy(what, elements)
    seconds = []
    for threads in THREADS:
        refloss.set_num_threads(threads)
        seconds.append(_fastest(call))
    return Point(what, elements, (seconds[0], seconds[1]), peak_memory(call) or 0)


def _cross_entropy(what: str, elements: int) -> Callable[[], object]:
    shape = (1000, elements // 1000) if what == "1000 rows" else (elements // 1000, 1000)
    logits, out = _drawn(shape), np.ones(shape, np.float32)
    labels = np.random.default_rng(1).integers(shape[1], size=shape[0])
    return lambda: refloss.cross_entropy(logits, labels, out=out)


def _mse(elements: int) -> Callable[[], object]:
    x, y, out = _drawn((elements,)), _drawn((elements,), seed=1), np.ones(elements, np.float32)
    return lambda: refloss.mse(x, y, grad="input", out=out)


def _drawn(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal numbers; a million of them, again and again: to draw more would take longer than what is measured."""
    some = 3 * np.random.default_rng(seed).standard_normal(1_000_003, np.float32)
    return np.resize(some, shape)


def _fastest(call: Callable[[], object]) -> float:
    call()
    times: list[float] = []
    while len(times) < FEWEST_CALLS or (len(times) < MOST_CALLS and sum(times) < SECONDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def growth_table(points: list[Point]) -> Table:
    """A row a size."""
    rows = []
    for point in points:
        one, two = point.seconds
        power = len(str(point.elements)) - 1
        per_element = f"{1e9 * one / point.elements:.3f}"
        rows.append((point.what, f"10^{power}", per_element, f"{one / two:.2f}", f"{point.extra / 2**20:.1f}"))
    columns = ("loss", "elements", "ns an element, 1 thread", "1 thread / 2 threads", "MiB beyond inputs and gradient")
    return Table("Mean cross-entropy and mse with the input's gradient, float32, out=", columns, rows)


def plot(points: list[Point], path: Path) -> None:
    """Time over elements on two logarithmic scales, as an SVG for light and dark pages."""
    style: Any = {"svg.hashsalt": "refloss", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes.patch.set_alpha(0.0)
        for what, colour in COLOURS.items():
            own = [point for point in points if point.what == what]
            sizes = [point.elements for point in own]
            for index, (threads, style_of_line) in enumerate(zip(THREADS, ("--", "-"), strict=True)):
                label = f"{what}, {threads} thread{'s' * (threads > 1)}"
                milliseconds = [1e3 * point.seconds[index] for point in own]
                axes.plot(sizes, milliseconds, style_of_line, color=colour, marker="o", markersize=3.5, label=label)
        axes.set(xscale="log", yscale="log", xlabel="elements", ylabel="ms")
        axes.tick_params(colors=INK, which="both", length=3)
        axes.grid(color=INK, alpha=0.25, linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("bottom", "left"))
            spine.set_color(INK)
        axes.legend(frameon=False, labelcolor=INK)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def conclusion(points: list[Point]) -> str:
    """Whether a second thread gains what it should, and how straight the lines are."""
    large = [point for point in points if point.elements >= 10**7]
    aims = [Aim(point.seconds[0] / point.seconds[1], AIM, "x") for point in large]
    rates = {what: [p.seconds[0] / p.elements for p in large if p.what == what] for what in COLOURS}
    spread = max(max(rate) / min(rate) for rate in rates.values())
    return (
        f"From 10^7 elements on, two threads are {statistics.median(aim.measured for aim in aims):.2f} times as fast"
        f" as one in the median; {sum(aim.holds() for aim in aims)} of {len(aims)} reach {AIM}. There, the time an"
        f" element differs by a factor of at most {spread:.2f} within a line."
    )


def main() -> None:
    """Measure each size in a process of its own, print the table, and perhaps publish it and its plot."""
    write = wants_write(__doc__)
    points = [in_fresh_process(measure, what, 10**power) for what in COLOURS for power in POWERS]
    publish("growth", machine(("refloss", "numpy", "numba")), [growth_table(points)], conclusion(points), write)
    if write:
        plot(points, IMAGE)


if __name__ == "__main__":
    main()
