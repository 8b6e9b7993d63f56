"""Every entry of the ledger, with the installed libraries; what the page says, and that it is up to date.

An entry of a library that is not installed is skipped; `pip install "refloss[peers]"` brings most of them.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from conformance.ledger.entry import Answer, Divergence, Entry, complaints, divergences, story, version
from conformance.ledger.page import FOLDER, PAGE, ROOT, TOPICS, page, topics
from conformance.peers import UnavailableError

# They warn of one another's releases, as they are imported and as they are called, and of some of what is shown here.
pytestmark = pytest.mark.filterwarnings("ignore")

DIVERGENCES = list(divergences())
RUNS = [(each, library) for each in DIVERGENCES for library in each.entry.seen]
REPORT = re.compile(r"[\w.-]+/[\w.-]+#\d+")


@pytest.mark.parametrize(("divergence", "library"), RUNS, ids=[f"{each.name}-{library}" for each, library in RUNS])
def test_divergence(divergence: Divergence, library: str) -> None:
    if version(library) is None:
        pytest.skip(f"{library} is not installed")
    try:
        answers = list(divergence.answers(library))
    except UnavailableError as reason:
        pytest.skip(str(reason))
    assert answers
    lines = complaints(divergence.entry, library, answers)
    assert not lines, "\n".join(lines)


ENTRY = Entry("a", "b", "c", "d", {"numpy": np.__version__})
RELEASE = f"numpy {np.__version__}"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (Answer("loss", np.nan, np.nan, 1.0, 1.0), None),
        (Answer("loss", 1.0, np.nan, 1.0, 1.0), f"loss: mended in {RELEASE}: say so in the ledger"),
        (Answer("loss", 2.0, np.nan, 1.0, 1.0), f"loss: {RELEASE} has 2.0, where the ledger has nan"),
        (Answer("loss", np.nan, np.nan, 1.0, 1.0 + 1e-11), "loss: refloss has 1.00000000001 instead of 1.0"),
        (Answer("loss", "ValueError", "TypeError", 1.0, 1.0), f"loss: {RELEASE} has ValueError, where the ledger has"),
        (Answer("loss", [0.0], [0.0, 0.0], 1.0, 1.0), f"loss: {RELEASE} has [0.0], where the ledger has [0.0, 0.0]"),
    ],
    ids=["diverges", "mended", "a third answer", "refloss is off", "another error", "another shape"],
)
def test_what_is_complained_of(answer: Answer, complaint: str | None) -> None:
    lines = complaints(ENTRY, "numpy", [answer])
    assert [line.startswith(complaint or "?") for line in lines] == [True] * (complaint is not None)


def test_what_is_followed_is_that_of_the_library() -> None:
    entry = Entry("a", "b", "c", "followed", {"numpy": np.__version__}, followed=True)
    assert complaints(entry, "numpy", [Answer("loss", 2.0, 2.0, 1.0, 2.0)]) == []
    assert complaints(entry, "numpy", [Answer("loss", 2.0, 2.0, 1.0, 1.0)]) == ["loss: refloss has 1.0 instead of 2.0"]


def test_every_entry_tells_its_story() -> None:
    """A line, and a few more of what happens and why it matters."""
    for each in DIVERGENCES:
        first, *rest = story(each.module).split("\n\n")
        assert re.fullmatch(r".*\.", first), each.name
        assert len(" ".join(rest)) > 100, each.name
        assert each.entry.topic in TOPICS, each.name
        assert all(REPORT.fullmatch(report) for report in each.entry.reports), each.name


def test_there_are_as_many_entries_as_are_promised() -> None:
    assert len(DIVERGENCES) >= 80
    assert len({(each.entry.topic, each.entry.case) for each in DIVERGENCES}) == len(DIVERGENCES)


def _tests_of(file: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))


def test_records_are_shown_by_tests_that_exist() -> None:
    shown = {each for topic in topics().values() for record in topic.records for each in record.shown_by}
    missing = {each for each in shown if each.partition("::")[2] not in _tests_of(each.partition("::")[0])}
    assert missing == set()
    assert all(record.shown_by for topic in topics().values() for record in topic.records)


def test_every_topic_is_on_the_page() -> None:
    assert {path.stem for path in (FOLDER / "records").glob("*.toml")} == set(TOPICS)


def test_the_page_is_up_to_date() -> None:
    """Otherwise `python -m conformance.ledger` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()
