"""What refloss costs before its first result: the import, the first call, and compiling all kernels of the corpus."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import refloss
from benchmarks.report import Aim, Table

HEAVY_MODULES = ("numba", "torch", "matplotlib", "jax", "transformers")
ROUNDS = 7
COLD_ROUNDS = 3
# Many classes are worked on row by row, few of them column by column: other kernels.
SHAPES = ((2, 32, 1000), (2, 5, 32))

IMPORT = f"""
import json, sys, time
start = time.perf_counter()
import refloss
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in {HEAVY_MODULES} if name in sys.modules]]))
"""

FIRST_CALL = """
import sys, time
import numpy as np
import refloss
*shape, classes = map(int, sys.argv[1:])
generator = np.random.default_rng(0)
logits = generator.standard_normal((*shape, classes), dtype=np.float32)
labels = generator.integers(classes, size=shape)
start = time.perf_counter()
refloss.causal_lm(logits, labels)
print(time.perf_counter() - start)
"""

COMMAND = """
from refloss.cli import main
main()
"""

# Kernels that came with the package; an editable install has none.
_SHIPPED = Path(refloss.__file__).parent / "compiled"
# What has to compile does without them.
_WITHOUT = """
from pathlib import Path
from refloss import levels
levels.SHIPPED = Path("nowhere")
"""


def startup() -> tuple[Table, list[Aim]]:
    """The table of start-up costs, and the aims in it."""
    imports = [json.loads(_run(IMPORT)) for _ in range(ROUNDS)]
    loaded = sorted({name for _, names in imports for name in names})
    measured = {"import refloss": Aim(statistics.median(seconds for seconds, _ in imports), 0.3, "s", at_least=False)}
    for shape in SHAPES:
        measured |= _first_calls(shape)
    measured |= _all_kernels()
    rows = [(name, f"{aim.measured:.2f} {aim.unit}", *aim.cells()) for name, aim in measured.items()]
    modules = f"{', '.join(HEAVY_MODULES[:-1])} or {HEAVY_MODULES[-1]} loaded by the import"
    rows.append((modules, ", ".join(loaded) or "none", "none", "no" if loaded else "yes"))
    aims = [*measured.values(), Aim(len(loaded), 1, "modules", at_least=False)]
    return Table("Start-up, each in a fresh process", ("what", "measured", "aim", "holds"), rows), aims


def _first_calls(shape: tuple[int, ...]) -> dict[str, Aim]:
    """A first call without compiled kernels, with those that came with the package, and with kernels on disk."""
    title, arguments = f"first causal_lm of {' × '.join(map(str, shape))}", [str(size) for size in shape]
    cold, warm, shipped = list[float](), list[float](), list[float]()
    for _ in range(COLD_ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(float(_run(_cold(FIRST_CALL), *arguments, cache=cache)))
            warm = [float(_run(_cold(FIRST_CALL), *arguments, cache=cache)) for _ in range(ROUNDS)]
    if _SHIPPED.exists():
        with tempfile.TemporaryDirectory() as cache:
            shipped = [float(_run(FIRST_CALL, *arguments, cache=cache)) for _ in range(ROUNDS)]
    times = {
        "nothing compiled yet": (cold, 15.0),
        "kernels of the package": (shipped, 1.5),
        "kernels on disk": (warm, 2.0),
    }
    return {
        f"{title}, {name}": Aim(statistics.median(seconds), bound, "s", at_least=False)
        for name, (seconds, bound) in times.items()
        if seconds
    }


def _all_kernels() -> dict[str, Aim]:
    """What golden write takes without compiled kernels, with kernels on disk, and with those of the package."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        write = (_cold(COMMAND), "golden", "write", folder)
        cold, warm = (_cpu_seconds(*write, cache=cache) for _ in range(2))
        shipped = _cpu_seconds(COMMAND, *write[1:], cache=f"{cache}/empty") if _SHIPPED.exists() else None
    measured = {
        "compiling all kernels of the golden cases": Aim(cold - warm, 40.0, "CPU s", at_least=False),
        "golden write, kernels on disk": Aim(warm, 6.0, "CPU s", at_least=False),
    }
    if shipped is not None:
        measured["golden write, kernels of the package"] = Aim(shipped, 6.0, "CPU s", at_least=False)
    return measured


def _cold(code: str) -> str:
    return _WITHOUT + code if _SHIPPED.exists() else code


def _cpu_seconds(code: str, *arguments: str, cache: str) -> float:
    """What all threads of a process take, of which there is one at a time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run(code, *arguments, cache=cache)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _run(code: str, *arguments: str, cache: str | None = None) -> str:
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
