"""Blocks of rows on all cores. Who works on which block, and in which order, never shows in a result."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from refloss import compilation, subnormals
from refloss.arrays import integer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

_limit: list[int] = []
_progress: ContextVar[Callable[[int, int], None] | None] = ContextVar("progress", default=None)


def get_num_threads() -> int:
    """How many threads a loss may use; NUMBA_NUM_THREADS, which defaults to the number of cores, unless set."""
    if _limit:
        return _limit[0]
    from numba.core import config

    return int(config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def set_num_threads(count: int) -> None:
    """Limit the threads of every later loss. The result does not depend on it."""
    _limit[:] = [integer(count, "count", low=1)]


@contextlib.contextmanager
def progress(report: Callable[[int, int], None] | None) -> Iterator[None]:
    """Call report(rows done since the last call, rows in all) as a loss begins, and as its blocks are finished.

    The rows of a head that matches are its layers.
    """
    token = _progress.set(report)
    try:
        yield
    finally:
        _progress.reset(token)


@contextlib.contextmanager
def steps(count: int) -> Iterator[Callable[[], None]]:
    """Of work whose blocks come one after the other, report steps instead of rows; yields what ends a step."""
    report = _progress.get()
    if report is not None:
        report(0, count)
    with progress(None):
        yield lambda: report(1, count) if report is not None else None


@contextlib.contextmanager
def passes(rows: int) -> Iterator[None]:
    """Of work that goes over blocks several times, report the rows of all passes together."""
    report = _progress.get()
    if report is not None:
        report(0, rows)
    with progress(None if report is None else lambda done, _: report(done, rows) if done else None):
        yield


def run_blocks(work: Callable[[int, int, Any], None], rows: int, block: int, scratch: Callable[[], Any]) -> None:
    """Call work(first, last, scratch()) for blocks that cover range(rows); the calling thread takes part."""
    report = _progress.get()
    if report is not None:
        report(0, rows)
    starts = itertools.count(0, block)
    stop: list[bool] = []

    def worker() -> None:
        buffers = scratch()
        while not stop and (first := next(starts)) < rows:
            last = min(first + block, rows)
            work(first, last, buffers)
            if report is not None:
                report(last - first, rows)

    # Read once: another thread may set it meanwhile.
    threads = get_num_threads() if rows > block else 1
    helpers = min(threads, -(-rows // block)) - 1
    if helpers < 1:
        worker()
        return
    stops = (*compilation.stops.get(), stop)

    def helper() -> None:
        compilation.stops.set(stops)
        worker()

    futures = _submitted(helper, helpers, threads - 1)
    try:
        worker()
        started = _awaited(futures)
    except BaseException:
        # Such as KeyboardInterrupt: let the others finish their block and no more.
        stop.append(True)
        _awaited(futures)
        raise
    for future in started:
        future.result()


def _awaited(futures: list[Future[None]]) -> list[Future[None]]:
    """Those that have been started, when they are done: whoever has not woken up by now is not waited for."""
    started = [future for future in futures if not future.cancel()]
    wait(started)
    return started


def _submitted(worker: Callable[[], None], helpers: int, threads: int) -> list[Future[None]]:
    """A worker's calls by threads of the pool, as many as there can be: the calling thread does what they do not."""
    futures: list[Future[None]] = []
    # No thread starts any more while Python shuts down, or where the system allows no more of them. By then a call may
    # have been queued all the same; it has a future here, so that it is cancelled or waited for like any other.
    with contextlib.suppress(RuntimeError):
        pool = _pool(threads)
        for _ in range(helpers):
            futures.append(Future())
            pool.submit(compilation.settle, futures[-1], worker)
    return futures


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """function of every item, several at a time; an exception is that of the first item which has one."""
    results: list[Any] = [None] * len(items)
    errors: dict[int, Exception] = {}

    def work(first: int, last: int, _: None) -> None:
        for i in range(first, last):
            try:
                # A thread has NumPy's defaults, not what the caller's has set.
                with progress(None), np.errstate(all="ignore"):
                    results[i] = function(items[i])
            except Exception as error:
                errors[i] = error

    run_blocks(work, len(items), 1, lambda: None)
    if errors:
        raise errors[min(errors)]
    return results


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work: to start them anew would take longer than many a loss.

    Calls that use another pool when a new limit replaces it finish what they have handed to it.
    """
    # Its module cannot be imported any more while Python shuts down, which is a RuntimeError too.
    from concurrent.futures import ThreadPoolExecutor

    # A thread flushes subnormals if the one that starts it does.
    return ThreadPoolExecutor(threads, thread_name_prefix="refloss", initializer=subnormals.keep)


# A child process has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
