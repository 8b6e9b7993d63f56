"""An emulated AArch64 gives this machine's bits: minutes, most of them for kernels, so only where asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance import aarch64
from refloss.golden import store

if TYPE_CHECKING:
    from pathlib import Path

SHORT_FORM = {"mse", "cross_entropy", "bce_with_logits"}


@pytest.fixture(scope="module")
def machine() -> Path:
    """The folder of the other machine."""
    if absent := aarch64.missing():
        pytest.skip(f"there is no {', no '.join(absent)}")
    if not aarch64.is_prepared(aarch64.ROOT):
        pytest.skip(f"{aarch64.ROOT}: nothing, or old packages; python -m conformance.aarch64 fetches them")
    return aarch64.ROOT


@pytest.mark.slow
def test_the_other_machine_is_another_one(machine: Path) -> None:
    assert "aarch64-unknown-linux-gnu, cortex-a76" in aarch64.described(machine)


@pytest.mark.slow
def test_bits_there_are_the_bits_here(machine: Path, tmp_path: Path) -> None:
    count = store.write(tmp_path, SHORT_FORM)
    assert count > 100
    assert aarch64.rechecked(machine, tmp_path).stdout == f"{count} of {count} cases have the same bits\n"


def stopped(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The status with which the command gives up."""
    monkeypatch.setattr("sys.argv", ["aarch64", *arguments])
    with pytest.raises(SystemExit) as stop:
        aarch64.main()
    return stop.value.code


def test_without_an_emulator_the_command_says_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert stopped(monkeypatch) == 2
    assert "no qemu-aarch64-static, no apt-get, no dpkg-deb; Debian's package" in capsys.readouterr().err


def test_functions_that_are_none_are_noticed_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(aarch64, "missing", list)
    root = tmp_path / "root"
    assert stopped(monkeypatch, "--only", "nonsense", "--root", str(root)) == 2
    assert "unknown function nonsense" in capsys.readouterr().err
    assert not root.exists()
