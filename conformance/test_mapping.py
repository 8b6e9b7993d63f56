"""The keys of LOSS_MAPPING against those of the transformers that is installed: whichever it is, all of them."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import transformers
from transformers.loss.loss_utils import LOSS_MAPPING

import refloss
from refloss.registry import FUNCTIONS

ROOT = Path(__file__).parents[1]
EXTRA = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
PINS = dict(requirement.split("==") for requirement in EXTRA if "==" in requirement)


def test_every_key_of_transformers_has_a_function() -> None:
    """A newer transformers that has one more fails here."""
    missing = sorted(set(LOSS_MAPPING) - set(refloss.LOSS_MAPPING))
    assert not missing, f"transformers {transformers.__version__} has keys that refloss lacks: {', '.join(missing)}"


def test_no_key_is_made_up() -> None:
    assert set(refloss.LOSS_MAPPING) <= set(LOSS_MAPPING)


def test_a_key_s_function_follows_the_one_that_transformers_has() -> None:
    """Keys that are one function there are one here, and a specification says which one it is."""
    for function in FUNCTIONS.values():
        theirs = {getattr(LOSS_MAPPING[key], "__name__", "") for key in function.specification.keys}
        told = function.specification.follows
        assert not theirs or any(f"transformers' {name}" == told for name in theirs), (function.name, theirs, told)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_the_release_is_the_pinned_one(package: str) -> None:
    assert importlib.metadata.version(package).partition("+")[0] == PINS[package]


def test_only_what_was_measured_repeats_a_pin() -> None:
    """A measurement names its machine and libraries, as the ledger names what it has run; all else refers to pins."""
    pins = re.compile("|".join(rf"\b{package}\W+{re.escape(version)}" for package, version in PINS.items()))
    pages = {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs" / "divergences.md"}
    lines = [line for page in pages for line in page.read_text().splitlines() if pins.search(line)]
    assert [line for line in lines if "AMD EPYC" not in line] == []
