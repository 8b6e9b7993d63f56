"""What refloss costs before its first result: the import, and the first call with and without compiled kernels."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks.report import Aim, Table

HEAVY_MODULES = ("numba", "torch", "matplotlib", "jax", "transformers")
ROUNDS = 7
COLD_ROUNDS = 3

IMPORT = f"""
import json, sys, time
start = time.perf_counter()
import refloss
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in {HEAVY_MODULES} if name in sys.modules]]))
"""

FIRST_CALL = """
import time
import numpy as np
import refloss
generator = np.random.default_rng(0)
logits = generator.standard_normal((2, 32, 1000), dtype=np.float32)
labels = generator.integers(1000, size=(2, 32))
start = time.perf_counter()
refloss.causal_lm(logits, labels)
print(time.perf_counter() - start)
"""


def startup() -> tuple[Table, list[Aim]]:
    """The table of start-up costs, and the aims in it."""
    imports = [_run(IMPORT) for _ in range(ROUNDS)]
    loaded = sorted({name for _, names in imports for name in names})
    cold, warm = [], []
    for number in range(COLD_ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_run(FIRST_CALL, cache))
            # The last cache serves the warm calls.
            warm = [_run(FIRST_CALL, cache) for _ in range(ROUNDS)] if number == COLD_ROUNDS - 1 else []
    measured = {
        "import refloss": Aim(statistics.median(seconds for seconds, _ in imports), 0.3, "s", at_least=False),
        "first causal_lm, nothing compiled yet": Aim(statistics.median(cold), 15.0, "s", at_least=False),
        "first causal_lm, kernels on disk": Aim(statistics.median(warm), 2.0, "s", at_least=False),
    }
    rows = [(name, f"{aim.measured:.2f} s", *aim.cells()) for name, aim in measured.items()]
    modules = f"{', '.join(HEAVY_MODULES[:-1])} or {HEAVY_MODULES[-1]} loaded by the import"
    rows.append((modules, ", ".join(loaded) or "none", "none", "no" if loaded else "yes"))
    aims = [*measured.values(), Aim(len(loaded), 1, "modules", at_least=False)]
    return Table("Start-up, each in a fresh process", ("what", "measured", "aim", "holds"), rows), aims


def _run(code: str, cache: str | None = None) -> Any:
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
