"""Work on several threads: every block once, errors in order, threads within threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import refloss
from refloss import parallel


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = refloss.get_num_threads()
    refloss.set_num_threads(3)
    yield
    refloss.set_num_threads(before)


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_every_row_belongs_to_one_block(rows: int) -> None:
    seen: list[int] = []
    parallel.run_blocks(lambda first, last, _: seen.extend(range(first, last)), rows, 5, lambda: None)
    assert sorted(seen) == list(range(rows))


def test_items_keep_their_order() -> None:
    assert parallel.each(lambda item: item * item, list(range(20))) == [item * item for item in range(20)]


def test_the_first_error_is_raised_whoever_comes_first() -> None:
    late = threading.Event()

    def fail(item: int) -> None:
        if item == 1:
            late.wait(5)
        if item in (1, 2):
            late.set()
            raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 1"):
        parallel.each(fail, [0, 1, 2, 3])


def test_blocks_within_items() -> None:
    counter = itertools.count()

    def count(first: int, last: int, _: None) -> None:
        for _row in range(first, last):
            next(counter)

    def item(rows: int) -> None:
        parallel.run_blocks(count, rows, 3, lambda: None)

    for _ in range(20):
        parallel.each(item, [10] * 8)
    assert next(counter) == 20 * 80


def test_progress_counts_items_and_not_what_is_in_them() -> None:
    reports: list[tuple[int, int]] = []
    with parallel.progress(lambda done, total: reports.append((done, total))):
        parallel.each(lambda _: parallel.run_blocks(lambda *_: None, 10, 3, lambda: None), [0] * 4)
    assert reports == [(0, 4), *[(1, 4)] * 4]


def rows_seen(rows: int = 200, block: int = 3) -> list[int]:
    seen: list[int] = []
    parallel.run_blocks(lambda first, last, _: seen.extend(range(first, last)), rows, block, lambda: None)
    return sorted(seen)


def test_a_limit_that_another_thread_sets_in_the_midst_of_a_call_is_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = itertools.chain([3], itertools.repeat(1))
    monkeypatch.setattr(parallel, "get_num_threads", lambda: next(limits))
    assert rows_seen() == list(range(200))


def test_limits_may_change_while_blocks_are_worked_on() -> None:
    seen: list[int] = []

    def work(first: int, last: int, _: None) -> None:
        refloss.set_num_threads(1 + first % 4)
        seen.extend(rows_seen(9, 1))
        seen.extend(range(first, last))

    parallel.run_blocks(work, 100, 1, lambda: None)
    assert sorted(seen) == sorted([*range(100), *list(range(9)) * 100])


@pytest.mark.parametrize("started", [0, 1])
def test_a_system_that_starts_no_more_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    parallel._pool.cache_clear()
    start, left = threading.Thread.start, itertools.count()

    def refuse(thread: threading.Thread) -> None:
        if next(left) >= started:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(20):
        assert rows_seen() == list(range(200))
    monkeypatch.undo()
    parallel._pool.cache_clear()
    assert next(left) > started


def test_a_call_that_could_be_queued_without_a_thread_of_its_own_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late:
        """A pool that queues a call, says that it cannot, and has it done by another thread all the same."""

        def submit(self, *call: Any) -> None:
            function, *arguments = call
            threading.Timer(0.0, function, arguments).start()
            time.sleep(0.05)
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parallel, "_pool", lambda _: Late())
    done: list[int] = []

    def work(first: int, _last: int, __: None) -> None:
        time.sleep(0.2 if threading.current_thread() is not threading.main_thread() else 0.01)
        done.append(first)

    parallel.run_blocks(work, 4, 1, lambda: None)
    assert sorted(done) == [0, 1, 2, 3]
