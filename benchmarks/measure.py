"""Time and peak memory of calls, and the machine that they were measured on."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROUNDS = 11
WARM_UP_ROUNDS = 2
# OpenMP's threads go on spinning for a moment after their work, which would be billed to whoever comes next.
PAUSE_SECONDS = 0.05

RESET_PEAK = Path("/proc/self/clear_refs")

Answer = TypeVar("Answer")


class Timing(NamedTuple):
    """Seconds: the median, the distance between the quartiles, the fastest."""

    median: float
    spread: float
    fastest: float


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Timing]:
    """Time the calls in turn, round by round, so that drift of the machine hits all alike.

    A turn is an untimed call and a timed one: a virtual machine may have given memory that was free for a second back
    to its host, and whoever first needs a large result would pay ten times its price. Results are released untimed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-WARM_UP_ROUNDS, rounds):
        for name, call in calls.items():
            time.sleep(PAUSE_SECONDS)
            call()
            start = time.perf_counter()
            result = call()
            elapsed = time.perf_counter() - start
            del result
            if number >= 0:
                times[name].append(elapsed)
    return {name: _timing(seconds) for name, seconds in times.items()}


def _timing(seconds: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, upper - lower, min(seconds))


def in_fresh_process(
    function: Callable[..., Answer], *arguments: object, environment: Mapping[str, str] | None = None
) -> Answer:
    """What a function of a module returns in an interpreter that has not run anything else."""
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with mock.patch.dict(os.environ, environment or {}), pool:
        return pool.submit(function, *arguments).result()


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes by which a call raises the resident memory at its highest, its result included; None if not on Linux."""
    if not RESET_PEAK.exists():
        return None
    gc.collect()
    # Free memory that malloc still holds would be used again without showing.
    ctypes.CDLL(None).malloc_trim(0)
    RESET_PEAK.write_text("5")
    before = _high_water_mark()
    result = call()
    peak = _high_water_mark() - before
    del result
    return peak


def _high_water_mark() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def machine(packages: tuple[str, ...]) -> str:
    """The processor, its cores and the versions of packages, as a sentence."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{_processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}."


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
