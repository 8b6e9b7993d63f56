"""Kernels compiled ahead of time, by a process for each core: while a wheel is built, or by ``refloss warm``.

The golden cases are computed, for they meet every kernel in every format. A process that comes to a kernel that another
one is compiling puts its case off, and goes on with the next.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import tempfile
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from refloss import levels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refloss.cases.source import Case


def compile_kernels(
    folder: Path | None = None,
    level: str = levels.NATIVE,
    *,
    only: frozenset[str] | None = None,
    workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Compile what is missing of the kernels of all functions, or of some, and say how many were.

    Args:
        folder: where to keep them; the user's folders, where calls will look for them, if not given.
        level: the kind of processor to compile for, which this one must be.
        only: names of functions.
        workers: processes; one for each core that this one may use, if not given.
        report: is called with the cases done since the last call, and in all.

    Raises:
        ValueError: this processor is not of that level.
        OSError: what is compiled cannot be kept.
    """
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as claims, _environment(level):
        start = (folder, Path(claims), level, only)
        pool = ProcessPoolExecutor(workers or _cores(), context, _begin, start)
        try:
            compiled = _share_out(pool, report)
            if folder is not None and compiled:
                (folder / levels.IDENTITY_FILE).write_text(json.dumps(pool.submit(_identity).result()))
        except BaseException:
            # Not to be waited for: they compile.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return compiled


def _share_out(pool: ProcessPoolExecutor, report: Callable[[int, int], None] | None) -> int:
    """Have every case computed; those that were put off once more whenever a kernel has been compiled."""
    total = pool.submit(_count).result()
    running = {pool.submit(_compute, i): i for i in range(total)}
    put_off: list[int] = []
    compiled = new = 0
    last_try = False
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            case, (done, kernels) = running.pop(future), future.result()
            new += kernels
            if not done:
                put_off.append(case)
            elif report is not None:
                report(1, total)
        if put_off and (new or not running):
            if last_try and not new and not running:
                raise OSError("compiled kernels cannot be kept: is there a folder that can be written to, and room?")
            last_try = not new
            running |= {pool.submit(_compute, case): case for case in put_off}
            put_off = []
            compiled, new = compiled + new, 0
    return compiled + new


@contextlib.contextmanager
def _environment(level: str) -> Iterator[None]:
    """What Numba reads when a process imports it."""
    told = levels.LEVELS.get(level)
    values = {"NUMBA_CPU_NAME": told.processor, "NUMBA_CPU_FEATURES": told.features} if told else {}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# What follows runs in the processes that compile.
_chosen: list[frozenset[str] | None] = []
_unfit: list[str] = []


def _begin(folder: Path | None, claims: Path, level: str, only: frozenset[str] | None) -> None:
    from llvmlite import binding

    from refloss import disk_cache, parallel

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parallel.set_num_threads(1)
    disk_cache.compile_ahead(folder, claims)
    _chosen[:] = [only]
    target = (binding.get_process_triple(), binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    if level not in levels.targets(target):
        _unfit[:] = [f"{level}: this processor, {target[1]}, is not of that level"]


@functools.cache
def _cases() -> list[Case]:
    """One case of each function, then the next of each: there are other kernels in other functions."""
    from refloss.golden.corpus import cases_of
    from refloss.registry import FUNCTIONS

    of_functions = [cases_of(name) for name in FUNCTIONS if _chosen[0] is None or name in _chosen[0]]
    return [case for row in zip_longest(*of_functions) for case in row if case is not None]


def _count() -> int:
    if _unfit:
        raise ValueError(*_unfit)
    return len(_cases())


def _compute(index: int) -> tuple[bool, int]:
    """Whether a case could be computed, and how many kernels were compiled for it."""
    import numpy as np

    from refloss import disk_cache
    from refloss.files import nested
    from refloss.registry import FUNCTIONS

    case, before = _cases()[index], len(disk_cache.compiled_here)
    done = True
    try:
        with np.errstate(all="ignore"):
            call = FUNCTIONS[case.function].call
            result = call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output)
            list(result.intermediates.values())  # some are computed when somebody asks
    except disk_cache.TakenError:
        done = False
    return done, len(disk_cache.compiled_here) - before


def _identity() -> dict[str, str]:
    """Whom the kernels in a folder are for."""
    from numba.core.registry import cpu_target

    from refloss import disk_cache

    return disk_cache.identity(cpu_target.target_context.codegen().magic_tuple())
