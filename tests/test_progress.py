"""What is shown of long work: how much there is from the start, and that kernels are being compiled."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from refloss import compilation
from refloss.commands import progress
from refloss.golden.store import counted


def compiling(hold: Callable[[], Any]) -> threading.Thread:
    """A kernel that takes its time."""
    thread = threading.Thread(target=lambda: compilation.aside(lambda _: hold())(None))
    thread.start()
    while not compilation.is_running():
        time.sleep(0.001)
    return thread


def told(written: Callable[[], str], words: str) -> bool:
    """Whether something is written before long."""
    deadline = time.monotonic() + 60
    while words not in written():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_where_nothing_can_be_drawn_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, done = io.StringIO(), threading.Event()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "PERIOD", 0.01)
    with progress.progress("cases") as report:
        assert told(stream.getvalue, "cases\n")
        report(0, 7)
        assert told(stream.getvalue, "cases: 0 of 7\n")
        thread = compiling(done.wait)
        assert told(stream.getvalue, "cases: 0 of 7, compiling kernels\n")
        done.set()
        thread.join()
        report(2, 7)
        report(1, 7)
        assert told(stream.getvalue, "cases: 3 of 7\n")
    length = len(stream.getvalue())
    time.sleep(0.05)
    assert len(stream.getvalue()) == length


def test_what_takes_a_moment_is_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.progress("cases") as report:
        report(1, 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_lines_that_nobody_can_read_are_no_error(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None) -> None:
    monkeypatch.setattr(progress, "PERIOD", 0.001)
    with progress.progress("cases") as report:
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        time.sleep(0.05)
        report(1, 1)
        assert "progress" in {thread.name for thread in threading.enumerate()}


def test_a_bar_has_a_total_from_the_start_and_says_that_kernels_are_compiled() -> None:
    stream, done = io.StringIO(), threading.Event()
    thread = compiling(done.wait)
    with progress._bar("cases", Console(file=stream, force_terminal=True, width=80)) as report:
        report(0, 7)
        assert told(stream.getvalue, "0/7")
        assert told(stream.getvalue, "compiling kernels")
        done.set()
        thread.join()


def test_items_are_counted_from_the_start() -> None:
    reports: list[tuple[int, int]] = []
    items = counted("ab", lambda done, total: reports.append((done, total)))
    assert next(items) == "a"
    assert reports == [(0, 2)]
    assert list(items) == ["b"]
    assert reports == [(0, 2), (1, 2), (1, 2)]
    assert list(counted([3], None)) == [3]
