"""Losses of Dask arrays on one, two and four local workers, and how their cost grows with rows and chunks.

Run as `python -m benchmarks.many_machines [--write]`. It needs some 4 GB of memory.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import compute
from distributed import Client, LocalCluster

import refloss
from benchmarks.measure import machine
from benchmarks.report import PAGE, Table, publish, wants_write

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES, ROWS_OF_CHUNK = 128_000, 128
WORKERS = (1, 2, 4)
ROWS = (512, 1024, 2048, 4096)
ROUNDS = 6
# Chunks of next to nothing, for what a graph costs.
SMALL, SMALL_CHUNKS = (128, 8), 7813
MILLION = 1_000_000


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """Local workers with one thread each, which all calls of Dask in here use."""
    os.environ["NUMBA_NUM_THREADS"] = "1"
    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(**options, memory_limit=None) as local, Client(local):
        yield


def logits(file: Path, rows: int) -> Any:
    """Logits whose chunks of rows are all read from one file, which every worker maps."""
    of_chunk, classes = np.load(file, mmap_mode="r").shape
    chunks = ((of_chunk,) * (rows // of_chunk), (classes,))
    return da.map_blocks(partial(_mapped, file), chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))


def _mapped(file: Path) -> Any:
    return np.load(file, mmap_mode="r")


def _written(gradient: np.ndarray) -> np.ndarray:
    """Stands for whatever takes a gradient; what it takes itself is not measured."""
    return gradient[:, :1].copy()


def seconds(file: Path, rows: int) -> tuple[float, float]:
    """Of a loss and its gradient: of the graph's making, and of its computation."""
    array = logits(file, rows)
    labels = np.random.default_rng(1).integers(array.shape[1], size=rows)
    start = time.perf_counter()
    result = refloss.cross_entropy(array, labels)
    gradient: Any = result.grads["logits"]
    taken = gradient.map_blocks(_written, chunks=(array.chunks[0], (1,)), dtype=np.float32)
    made = time.perf_counter()
    compute(result.loss, taken)
    return made - start, time.perf_counter() - made


def fastest(file: Path, rows: int) -> float:
    """Seconds of the fastest of some computations, after one that loads kernels and the file."""
    return min([seconds(file, rows)[1] for _ in range(ROUNDS + 1)][1:])


def of_workers(file: Path) -> tuple[Table, float]:
    """Seconds by workers and rows; and the least that a row takes with two workers, as this machine has cores."""
    lines, least = [], float("inf")
    for workers in WORKERS:
        with cluster(workers):
            found = [fastest(file, rows) for rows in ROWS]
        lines.append((str(workers), *(f"{each:.2f}" for each in found), f"{ROWS[-1] / found[-1]:.0f}"))
        least = min(least, found[-1] / ROWS[-1])
    columns = ("workers", *(f"{rows} rows, s" for rows in ROWS), "rows a second")
    return Table(f"Loss and gradient of rows of {CLASSES // 1000}k float32 logits", columns, lines), least


def of_chunks(folder: Path) -> tuple[Table, float]:
    """What the graph of a million rows costs where chunks hold next to nothing; and what a chunk takes of it."""
    file = folder / "small.npy"
    np.save(file, np.zeros(SMALL, np.float32))
    counts = (SMALL_CHUNKS // 16, SMALL_CHUNKS // 4, SMALL_CHUNKS)
    with cluster(WORKERS[1]):
        found = [seconds(file, count * SMALL[0]) for count in (10, *counts)][1:]
    lines = [
        (
            f"{count * SMALL[0]:,}",
            f"{count:,}",
            f"{made:.1f}",
            f"{computed:.1f}",
            f"{1e3 * (made + computed) / count:.1f}",
        )
        for count, (made, computed) in zip(counts, found, strict=True)
    ]
    columns = ("rows", "chunks", "making the graph, s", "computing it, s", "ms a chunk")
    return Table(f"Chunks of {SMALL[0]} × {SMALL[1]}, two workers", columns, lines), sum(found[-1]) / counts[-1]


def main() -> None:
    """Measure, print, and write if asked."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "logits.npy"
        np.save(file, np.random.default_rng(0).standard_normal((ROWS_OF_CHUNK, CLASSES), np.float32))
        workers, of_row = of_workers(file)
        chunks, of_chunk = of_chunks(folder)
    whole = MILLION * of_row + MILLION / ROWS_OF_CHUNK * of_chunk
    conclusion = (
        f"On paper, a million rows of {CLASSES // 1000}k classes, {4e-9 * MILLION * CLASSES:.0f} GB of float32 logits"
        f" in chunks of {ROWS_OF_CHUNK} rows: {MILLION * of_row / 60:.0f} minutes for the rows and"
        f" {MILLION / ROWS_OF_CHUNK * of_chunk / 60:.1f} for their chunks, {whole / 60:.0f} in all on this machine."
    )
    document = PAGE.parent / "many_machines.md"
    introduction = machine(("refloss", "numpy", "dask", "distributed"))
    publish("workers", introduction, [workers, chunks], conclusion, wants_write(__doc__), document)


if __name__ == "__main__":
    main()
