"""What continuous integration runs beside .ci/run: other Pythons, the oldest and the newest of what refloss needs.

    nox -l                         the sessions
    nox -s tests-3.13 oldest       some of them
    nox -s newest -- tests -x      what follows is for pytest

Whoever comes first writes golden files of a few functions, and the others have to compute the same bits.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["tests", "oldest", "newest", "lint", "docs"]
nox.options.error_on_missing_interpreters = False

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# What needs none of the libraries that refloss is compared with.
TESTS = (
    *("tests/test_arrays.py", "tests/test_files.py", "tests/test_golden.py", "tests/test_result.py"),
    *("tests/test_cli.py", "tests/test_tables.py", "tests/test_recipes.py"),
)
TOOLS = ("mpmath>=1.3", "gmpy2>=2.2", "jsonschema>=4.23", "pytest-xdist>=3.6", "hatchling>=1.26")
# One of each family of kernels that is quick to compile.
FUNCTIONS = "mse,cross_entropy,causal_lm,bce_with_logits,ctc,triplet_margin,policy_loss,object_detection"


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """What is installed of what is newest, on each Python."""
    _try(session)


@nox.session(python=(PYTHONS[0], PYTHONS[-1]))
def oldest(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml allows."""
    _try(session, "--resolution", "lowest-direct")


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """Versions that are not released yet, where there are such."""
    _try(session, "--upgrade", "--prerelease", "allow")


@nox.session
def lint(session: nox.Session) -> None:
    """Linter, layers and types."""
    session.install("-e", ".[test,lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, and its pages: links, tables, and what is written from the specifications."""
    session.install("-e", ".[testing,docs]", *TOOLS)
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", "build/site")
    session.run("pytest", "tests/test_pages.py", "tests/test_tables.py")


def _try(session: nox.Session, *resolution: str) -> None:
    """Tests, or those that are asked for, and the bits of golden files."""
    session.install("-e", ".[testing]", *resolution)
    session.install(*TOOLS)
    session.run("pytest", *(session.posargs or TESTS))
    golden = Path(session.cache_dir) / "golden"
    if golden.exists():
        session.run("refloss", "golden", "check", str(golden))
    else:
        session.run("refloss", "golden", "write", str(golden), "--only", FUNCTIONS)
