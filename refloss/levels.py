"""Levels of processors that kernels are compiled for ahead of time, and folders of those that came with the package.

A wheel that is built for the machine at hand has code for its very processor, one that is made for others has code for
some levels. What a processor has, LLVM says, as it does for Numba: settings of Numba's that forbid vectors count.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

SHIPPED = Path(__file__).parent / "compiled"
NATIVE = "native"
# In each folder: whom its kernels are for.
IDENTITY_FILE = "identity.json"

# What Numba compiles for: LLVM's triple, the name of a processor, and its features.
Target = tuple[str, str, str]


class Level(NamedTuple):
    """What Numba is told, as NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, and the features that a processor then needs."""

    machine: str
    processor: str
    features: str
    needs: frozenset[str]


_V3 = frozenset(
    "avx avx2 bmi bmi2 cmov cx16 f16c fma lzcnt movbe popcnt sahf sse3 sse4.1 sse4.2 ssse3 xsave".split()  # noqa: SIM905
)
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# The best comes first. With vectors of 512 bits, which LLVM avoids at that level, a softmax takes two thirds of it.
LEVELS = {
    "x86-64-v4": Level("x86_64", "x86-64-v4", "-prefer-256-bit", _V4),
    "x86-64-v3": Level("x86_64", "x86-64-v3", "", _V3),
    "aarch64": Level("aarch64", "generic", "", frozenset()),
}


@functools.cache
def targets(own: Target) -> dict[str, Target]:
    """The levels whose code runs where Numba compiles for a target, the best first, and what each was compiled for."""
    triple, _, features = own
    has = {name.removeprefix("+") for name in features.split(",") if name.startswith("+")}
    found = {NATIVE: own}
    for name, level in LEVELS.items():
        target = (triple, level.processor, level.features)
        # Whoever names a processor and nothing else has not said that it has features that all others have.
        fits = level.needs <= has if level.needs else bool(features)
        if triple.split("-")[0] == level.machine and (fits or target == own):
            found[name] = target
    return found
