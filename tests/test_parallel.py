"""Work on several threads: every block once, errors in order, threads within threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

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
    assert reports == [(1, 4)] * 4
