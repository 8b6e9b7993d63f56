"""Work on a Dask cluster. Dask is imported when a scheduler is named, and not before."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import time
import uuid
import warnings
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

import refloss
from refloss.commands.progress import progress, told_to
from refloss.commands.telling import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from distributed import Client

    from refloss.testing.judging.compare import Each, Report

PERIOD = 0.1  # seconds between two messages of a worker

HELP = (
    "Have the workers of a Dask scheduler do the work: its address, as tcp://HOST:8786. They need the same refloss, "
    "and the same files under the same paths."
)
Scheduler = Annotated[Optional[str], typer.Option(metavar="ADDRESS", help=HELP)]  # noqa: UP045


@contextlib.contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of a scheduler; what goes wrong with the cluster meanwhile is a RuntimeError."""
    try:
        import distributed
        from distributed.utils import silence_logging_cmgr
    except ImportError as error:
        raise ValueError('--scheduler: there is no Dask: pip install "refloss[dask]"') from error
    if re.fullmatch(r"(\w+://)?[^\s/:]+:\d+", address) is None:
        raise ValueError(f"--scheduler: {address!r} is no address; expected one such as tcp://HOST:8786")
    try:
        with (
            warnings.catch_warnings(),
            silence_logging_cmgr(logging.CRITICAL),  # what is logged of a scheduler that is lost is told below
            distributed.Client(address, set_as_default=False) as client,
        ):
            # It has arrays in it that no worker can map, of compressed files.
            warnings.filterwarnings("ignore", "Sending large graph")
            if not client.scheduler_info()["workers"]:
                note(f"{address} has no workers yet; they are waited for")
            yield client
    except distributed.KilledWorker as error:
        raise RuntimeError(f"{address}: workers end while they do the same piece of work: {error}") from error
    except ImportError as error:
        raise RuntimeError(f"{address}: a worker lacks what is here: {error}") from error
    except CancelledError as error:
        raise RuntimeError(f"{address}: the work is lost: {error}") from error


@contextlib.contextmanager
def each(address: str | None) -> Iterator[Each]:
    """What calls a function with every item of a list: here if there is no scheduler."""
    if address is None:
        from refloss.testing.judging.compare import one_by_one

        yield one_by_one
        return
    with connected(address) as client:
        yield functools.partial(_spread, client)


def _spread(client: Client, function: Callable[[Any], Any], items: Sequence[Any], report: Report) -> list[Any]:
    from distributed import as_completed

    report(0, len(items))
    # Not pure: whoever has asked for the same before may have been told it of files that have changed since.
    futures = client.map(functools.partial(of_version, refloss.__version__, function), items, pure=False)
    results = {}
    for future in as_completed(futures, loop=client.loop):
        results[future.key] = future.result()
        report(1, len(items))
    return [results[future.key] for future in futures]


def call(client: Client, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, called on a worker; its progress is shown here."""
    with progress("rows") as report, told(client, report) as topic:
        future = client.submit(of_version, refloss.__version__, _telling, topic, function, *arguments, pure=False)
        return future.result()


def of_version(version: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a worker, if that has some version of refloss."""
    if refloss.__version__ != version:
        raise RuntimeError(f"a worker has refloss {refloss.__version__}; expected {version}")
    return function(*arguments)


@contextlib.contextmanager
def told(client: Client, report: Report) -> Iterator[str]:
    """A topic: what workers tell of it is reported here."""
    topic = f"refloss-{uuid.uuid4()}"
    client.subscribe_topic(topic, lambda event: report(*event[1]))
    try:
        yield topic
    finally:
        client.unsubscribe_topic(topic)


def tell(topic: str, done: int, total: int) -> None:
    """Tell of a topic, on a worker, that so many more are done of all."""
    from distributed import get_worker

    get_worker().log_event(topic, [done, total])


def _telling(topic: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function on a worker that tells of a topic what is done, not more often than anybody looks."""
    from distributed import get_worker

    worker, telling, untold, last = get_worker(), threading.Lock(), 0, 0.0

    def report(done: int, total: int) -> None:
        nonlocal untold, last
        with telling:  # threads report as well
            untold += done
            if time.monotonic() - last > PERIOD:
                worker.log_event(topic, [untold, total])
                untold, last = 0, time.monotonic()

    with told_to(report):
        return function(*arguments)
