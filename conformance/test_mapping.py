"""The keys of LOSS_MAPPING against transformers', of the release that is pinned."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss

ROOT = Path(__file__).parents[1]
EXTRA = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
PINS = dict(requirement.split("==") for requirement in EXTRA if "==" in requirement)
MISSING = {
    "ParakeetForRNNT",
    "ParakeetForTDT",
    "PocketTTSForConditionalGeneration",
    "GradiumPhononTTSForConditionalGeneration",
    "RfDetrForInstanceSegmentation",
}


def test_what_is_missing() -> None:
    theirs, ours = set(LOSS_MAPPING), set(refloss.LOSS_MAPPING)
    assert theirs - ours == MISSING
    assert ours <= theirs


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_the_release_is_the_pinned_one(package: str) -> None:
    assert importlib.metadata.version(package).partition("+")[0] == PINS[package]


def test_only_what_was_measured_repeats_a_pin() -> None:
    """A measurement names its machine and its libraries; what else needs a version refers to the pin."""
    pins = re.compile("|".join(rf"\b{package}\W+{re.escape(version)}" for package, version in PINS.items()))
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    lines = [line for page in pages for line in page.read_text().splitlines() if pins.search(line)]
    assert [line for line in lines if "AMD EPYC" not in line] == []
