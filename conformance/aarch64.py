"""The golden cases computed again by another kind of processor, an emulated Cortex-A76: the bits have to be the same.

    apt-get install qemu-user-static
    python -m conformance.aarch64 [--only mse,cross_entropy,bce_with_logits] [--root DIR]

This machine writes golden files, and ``refloss golden check`` recomputes them there: Numba compiles every kernel for
that processor, and QEMU carries out what it made. Python and its C library are Debian's, the rest are wheels of the
versions that this process has: apt and pip fetch them the first time and unpack them into a folder, and nothing is
installed. Compiled kernels stay in that folder as well, so that a second run takes a fraction of the first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import refloss
from refloss.golden import store

ROOT = Path.home() / ".cache" / "refloss-aarch64"

_EMULATOR = "qemu-aarch64-static"
_PROCESSOR = "cortex-a76"
# Of wheels, by the oldest C library that they run with: pip does not conclude one from another.
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
_APT_SETTINGS = """\
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "root";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""
_DESCRIPTION = """\
import platform, numba
from numba.core.registry import cpu_target
triple, processor, _ = cpu_target.target_context.codegen().magic_tuple()
print(f"Python {platform.python_version()}, Numba {numba.__version__}, {triple}, {processor}")
"""


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [program for program in (_EMULATOR, "apt-get", "dpkg-deb") if shutil.which(program) is None]


def is_prepared(root: Path) -> bool:
    """Whether a folder has the other machine's Python, and packages of the versions that this process has."""
    path = root / "requirements.txt"
    return path.exists() and path.read_text() == _requirements()


def prepare(root: Path) -> None:
    """Fetch the other machine's Python and its packages; the list of them is written last."""
    root.mkdir(parents=True, exist_ok=True)
    _unpack_python(root)
    _unpack_packages(root)
    (root / "requirements.txt").write_text(_requirements())


def _unpack_python(root: Path) -> None:
    """Have apt find what Python needs where nothing is installed, and unpack all of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "settings").write_text(_APT_SETTINGS.format(folder=folder))
        environment = os.environ | {"APT_CONFIG": str(folder / "settings")}
        for command in ("update", "install --yes --no-install-recommends --download-only python3 libstdc++6"):
            subprocess.run(["apt-get", "-qq", *command.split()], env=environment, check=True)
        for archive in folder.glob("cache/archives/*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, root], check=True)


def _unpack_packages(root: Path) -> None:
    shutil.rmtree(root / "packages", ignore_errors=True)
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    command += ["--implementation=cp", f"--python-version={version}", *(f"--platform={each}" for each in _PLATFORMS)]
    subprocess.run([*command, f"--target={root / 'packages'}", *_requirements().split()], check=True)


def _requirements() -> str:
    """What refloss needs, in the versions that this process has."""
    needed = [line for line in metadata.requires("refloss") or () if "extra ==" not in line]
    names = sorted(re.split(r"[^\w-]", line, maxsplit=1)[0] for line in needed)
    return "".join(f"{name}=={metadata.version(name)}\n" for name in names)


def described(root: Path) -> str:
    """What compiles on the other machine, and for which processor, in its own words."""
    return run(root, "-c", _DESCRIPTION).stdout.strip()


def rechecked(root: Path, golden: Path) -> subprocess.CompletedProcess[str]:
    """What ``refloss golden check`` says of a folder on the other machine."""
    return run(root, "-m", "refloss", "golden", "check", str(golden))


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments on the other machine, which has our files and environment."""
    folders = root / "packages", Path(refloss.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "NUMBA_CACHE_DIR": str(root / "kernels"),
        # LLVM reads /proc/cpuinfo, which is this machine's.
        "NUMBA_CPU_NAME": _PROCESSOR,
        "NUMBA_CPU_FEATURES": "",
    }
    command = [_EMULATOR, "-cpu", _PROCESSOR, "-L", str(root), str(root / "usr/bin/python3"), "-P", *arguments]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)


def main() -> int:
    """The command line: 0 where all bits are the same, 1 where some differ, 2 without an emulator."""
    parser = argparse.ArgumentParser(prog="python -m conformance.aarch64", description=str(__doc__).split("\n")[0])
    parser.add_argument("--only", default="", help="functions, separated by commas; all if not given")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the other machine's files; made if need be")
    arguments = parser.parse_args()
    if absent := missing():
        parser.error(f"there is no {', no '.join(absent)}; Debian's package of the emulator is qemu-user-static")
    root, only = arguments.root.absolute(), set(filter(None, arguments.only.split(",")))
    with tempfile.TemporaryDirectory() as name:
        golden = Path(name)
        try:
            print(f"{store.write(golden, only or None)} cases written", flush=True)
        except ValueError as error:
            parser.error(str(error))
        if not is_prepared(root):
            prepare(root)
        print(described(root), flush=True)
        outcome = rechecked(root, golden)
    print(outcome.stdout, end="")
    return outcome.returncode


if __name__ == "__main__":
    sys.exit(main())
