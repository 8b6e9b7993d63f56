"""docs/divergences.md, from the entries that run and the records of what tests show."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.ledger.entry import divergences

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from conformance.ledger.entry import Divergence

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PAGE = ROOT / "docs" / "divergences.md"
# Sections of the page, in its order: files of records/.
TOPICS = (
    "cross_entropy",
    "linear_cross_entropy",
    "classification",
    "alignments",
    "vectors",
    "contrastive",
    "log_probs",
    "distillation",
    "detection",
    "speech_synthesis",
    "topk_distillation",
    "transducers",
    "many_machines",
    "policies",
    "preferences",
    "routers",
    "policy_trainers",
    "preference_trainers",
    "optax",
)
# Distributions whose libraries are called otherwise.
NAMES = {
    "liger-kernel": "Liger-Kernel",
    "megatron-core": "Megatron-LM",
    "onnx": "ONNX",
    "openrlhf": "OpenRLHF",
    "trl": "TRL",
}
COLUMNS = ("case", "what happens", "refloss", "seen in", "reported as", "shown by")


@dataclasses.dataclass(frozen=True)
class Record:
    """A row without code of its own, which tests show."""

    case: str
    theirs: str
    ours: str
    seen: Mapping[str, str]
    shown_by: Sequence[str]  # file::function
    reports: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Topic:
    """A section of the page."""

    title: str
    before: str = ""
    after: str = ""
    records: Sequence[Record] = ()


def topics() -> dict[str, Topic]:
    """All sections by their names."""
    return {name: _topic(FOLDER / "records" / f"{name}.toml") for name in TOPICS}


def _topic(path: Path) -> Topic:
    with path.open("rb") as file:
        held = tomllib.load(file)
    return Topic(**held | {"records": [Record(**each) for each in held.get("records", ())]})


def page() -> str:
    """The whole text."""
    found = list(divergences())
    parts = [(FOLDER / "introduction.md").read_text(encoding="utf-8").format(entries=len(found))]
    for name, topic in topics().items():
        rows = [*(_of_entry(each) for each in found if each.entry.topic == name), *map(_of_record, topic.records)]
        parts.append("\n\n".join(_section(topic, rows)) + "\n")
    return "\n".join(parts)


def _section(topic: Topic, rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"## {topic.title}"
    if topic.before:
        yield topic.before
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    yield "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    if topic.after:
        yield topic.after


def _of_entry(divergence: Divergence) -> tuple[str, ...]:
    entry = divergence.entry
    shown = f"[`{divergence.name}`](../conformance/ledger/{divergence.name}.py)"
    return entry.case, entry.theirs, entry.ours, _versions(entry.seen), _links(entry.reports), shown


def _of_record(record: Record) -> tuple[str, ...]:
    files = dict.fromkeys(each.partition("::")[0] for each in record.shown_by)
    shown = ", ".join(f"[{Path(file).stem}](../{file})" for file in files)
    return record.case, record.theirs, record.ours, _versions(record.seen), _links(record.reports), shown


def _versions(seen: Mapping[str, str]) -> str:
    return ", ".join(f"{NAMES.get(library, library)} {versions}" for library, versions in seen.items())


def _links(reports: Sequence[str]) -> str:
    """Of owner/repository#number."""
    links = []
    for report in reports:
        repository, number = report.split("#")
        links.append(f"[{repository.partition('/')[2]}#{number}](https://github.com/{repository}/issues/{number})")
    return ", ".join(links)
