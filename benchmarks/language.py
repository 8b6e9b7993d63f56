"""Cross-entropy of language models: time and peak memory against PyTorch and JAX, and start-up costs.

Run as `python -m benchmarks.language [--write]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import ml_dtypes
import numpy as np

from benchmarks.competitors import COMPETITORS, JAX, REFLOSS, REFLOSS_OUT, TORCH, TORCH_COMPILED
from benchmarks.measure import Timing, in_fresh_process, interleaved, machine, peak_memory
from benchmarks.report import Aim, Table, console, publish, wants_write
from benchmarks.startup import startup
from refloss.parallel import run_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = ((2048, 32000), (512, 128256), (8192, 4096))
COLUMNS = (
    *("shape", "implementation", "ms", "quartiles apart", "time / refloss", "rate / floor", "aim", "holds"),
    *("peak MiB", "peak / gradient"),
)
PEER_AIMS = {TORCH: 2.5, TORCH_COMPILED: 1.5, JAX: 1.2}
OUT_AIM = 0.5
# What those that fuse value and gradient are held to where pages are the same for all.
EQUAL_PAGES_PEERS = (TORCH_COMPILED, JAX)
EQUAL_PAGES_AIM = 1.3
# NumPy asks for huge pages and the others do not, which decides what fresh outputs cost: the same for all, either way.
PAGES = {
    "4 KiB": {"NUMPY_MADVISE_HUGEPAGE": "0"},
    "huge": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}
FLOORS = ("copy, one thread", "copy, all threads")
# What a thread copies at a time. Measured to be faster than an equal share for each thread at once.
COPY_BYTES = 1 << 20
FLOOR = "memory floor"


class Measured(NamedTuple):
    """Timings and peak memory by name; the floor has no peak."""

    timings: dict[str, Timing]
    peaks: dict[str, int | None]
    gradient_bytes: int


def inputs(shape: tuple[int, int], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits like those of a model, and labels."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(shape, dtype=np.float32)
    logits *= 3
    return logits.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype), generator.integers(
        shape[1], size=shape[0]
    )


def copies(logits: np.ndarray) -> dict[str, Callable[[], None]]:
    """The least that any gradient costs: logits read once, an existing array written once."""
    out = np.full_like(logits, 0)
    rows = max(1, COPY_BYTES // logits[0].nbytes)

    def copy(first: int, last: int, _: object) -> None:
        np.copyto(out[first:last], logits[first:last])

    def by_blocks() -> None:
        run_blocks(copy, len(logits), rows, lambda: None)

    return dict(zip(FLOORS, (lambda: np.copyto(out, logits), by_blocks), strict=True))


def times(shape: tuple[int, int], dtype: str, names: tuple[str, ...]) -> dict[str, Timing]:
    """Timings of competitors on the same inputs, and of the better floor."""
    logits, labels = inputs(shape, dtype)
    calls = {name: COMPETITORS[name].prepare(logits, labels) for name in names}
    losses = {name: float(call()[0]) for name, call in calls.items()}
    for name, loss in losses.items():
        if abs(loss - losses[REFLOSS]) > 1e-2 * losses[REFLOSS]:
            raise ValueError(f"{name} has loss {loss}, refloss {losses[REFLOSS]}: they do not compute the same")
    timings = interleaved({**calls, **copies(logits)})
    floor = min((timings.pop(name) for name in FLOORS), key=lambda timing: timing.median)
    return {**timings, FLOOR: floor}


def peak(name: str, shape: tuple[int, int], dtype: str) -> int | None:
    """Peak memory of one competitor's call beyond its inputs; for a fresh process."""
    logits, labels = inputs(shape, dtype)
    competitor = COMPETITORS[name]
    call = competitor.prepare(logits, labels)
    # Kernels get loaded here. What is compiled for one shape must see that shape; the others must not, lest they keep
    # a buffer of that size and use it again.
    warm_up = call if competitor.compiles_each_shape else competitor.prepare(logits[:2].copy(), labels[:2].copy())
    warm_up()
    return peak_memory(call)


def measure(shape: tuple[int, int], dtype: str, names: tuple[str, ...]) -> Measured:
    """Everything about one shape and type."""
    with console.status(f"{shape[0]} × {shape[1]} {dtype}"):
        peaks = {name: in_fresh_process(peak, name, shape, dtype) for name in names}
        width = 2 if dtype == "bfloat16" else 4
        return Measured(times(shape, dtype, names), peaks, shape[0] * shape[1] * width)


def aim_of(name: str, timings: dict[str, Timing]) -> Aim | None:
    """What a competitor's row is held against."""
    if name in PEER_AIMS:
        return Aim(timings[name].median / timings[REFLOSS].median, PEER_AIMS[name], "× refloss")
    if name == REFLOSS_OUT:
        return Aim(timings[FLOOR].median / timings[name].median, OUT_AIM, "of the floor")
    return None


def memory_cells(peak_bytes: int | None, gradient_bytes: int) -> tuple[str, str]:
    """Peak memory in MiB and in gradients."""
    return ("", "") if peak_bytes is None else (f"{peak_bytes / 2**20:.0f}", f"{peak_bytes / gradient_bytes:.2f}")


def comparison(dtype: str, names: tuple[str, ...], with_aims: bool) -> tuple[Table, list[Aim]]:
    """The table of one type, and the aims in it."""
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for shape in SHAPES:
        measured = measure(shape, dtype, names)
        timings = measured.timings
        for name, timing in timings.items():
            aim = aim_of(name, timings) if with_aims else None
            aims += [aim] if aim else []
            rows.append(
                (
                    f"{shape[0]} × {shape[1]}" if name == REFLOSS else "",
                    name,
                    f"{timing.median * 1e3:.1f}",
                    f"{timing.spread * 1e3:.1f}",
                    f"{timing.median / timings[REFLOSS].median:.2f}",
                    f"{timings[FLOOR].median / timing.median:.2f}",
                    *(aim.cells() if aim else ("", "")),
                    *memory_cells(measured.peaks.get(name), measured.gradient_bytes),
                )
            )
    return Table(f"Mean cross-entropy and its gradient, {dtype}", COLUMNS, rows), aims


def same_pages(dtype: str) -> tuple[Table, list[Aim]]:
    """The comparison of one type with pages of one size for all, and the aims in it."""
    rows: list[tuple[str, ...]] = []
    aims: list[Aim] = []
    for shape in SHAPES:
        for pages, environment in PAGES.items():
            with console.status(f"{shape[0]} × {shape[1]} {dtype}, {pages} pages"):
                timings = in_fresh_process(times, shape, dtype, tuple(COMPETITORS), environment=environment)
            base = timings[REFLOSS].median
            ratios = {name: timings[name].median / base for name in COMPETITORS if name != REFLOSS}
            held = [Aim(ratios[name], EQUAL_PAGES_AIM, "× refloss") for name in EQUAL_PAGES_PEERS]
            aims += held
            verdict = "yes" if all(aim.holds() for aim in held) else "no"
            floor = timings[FLOOR].median / timings[REFLOSS_OUT].median
            cells = (f"{base * 1e3:.1f}", *(f"{ratio:.2f}" for ratio in ratios.values()), f"{floor:.2f}", verdict)
            rows.append((f"{shape[0]} × {shape[1]}", pages, *cells))
    names = (f"{name} / refloss" for name in COMPETITORS if name != REFLOSS)
    holds = f"both peers ≥ {EQUAL_PAGES_AIM:g}"
    columns = ("shape", "pages", "refloss ms", *names, "out= rate / floor", holds)
    return Table(f"The same pages for all, {dtype}", columns, rows), aims


def main() -> None:
    """Measure, print and, with --write, document."""
    write = wants_write(__doc__)
    single, single_aims = comparison("float32", tuple(COMPETITORS), with_aims=True)
    half, _ = comparison("bfloat16", tuple(COMPETITORS), with_aims=False)
    pages, pages_aims = same_pages("float32")
    half_pages, half_pages_aims = same_pages("bfloat16")
    with console.status("start-up"):
        start, start_aims = startup()
    aims = single_aims + pages_aims + half_pages_aims + start_aims
    held = sum(aim.holds() for aim in aims)
    conclusion = f"{held} of {len(aims)} aims hold; in the first table with pages as each library asks for them."
    packages = ("refloss", "numpy", "numba", "torch", "jax")
    publish("language", machine(packages), (single, pages, half, half_pages, start), conclusion, write)


if __name__ == "__main__":
    main()
