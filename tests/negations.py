"""Negated results of fused multiply-adds in the kernels: python -m tests.negations FAMILY... prints those in LLVM's IR.

LLVM may turn −fma(a, b, c) into an instruction that computes −a·b − c: where the result is 0, with the other sign, and
in scalar code and loop tails only. A negation belongs into the operands. Where the result has other uses as well, it
stays what it is, and negating it is harmless.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from typing import Any

from numba.core.dispatcher import Dispatcher

from refloss.disk_cache import DiskCache
from refloss.golden.corpus import cases_of
from refloss.golden.store import evaluate

_FMA = re.compile(r"(%[\w.]+) = [^\n]*@llvm\.fma\.")


def negated(ir: str) -> list[str]:
    """Results of fused multiply-adds that are negated and not used otherwise."""
    found = []
    for body in re.split(r"^define ", ir, flags=re.MULTILINE)[1:]:
        for name in _FMA.findall(body):
            name_alone = re.escape(name) + r"(?![\w.])"
            if len(re.findall(name_alone, body)) == 2 and re.search(rf"= fneg [^%\n]*{name_alone}", body):
                found.append(name)
    return found


def kernels() -> dict[str, list[str]]:
    """The IR of every kernel that this process has compiled, by name."""
    known: list[Any] = [thing for thing in gc.get_objects() if isinstance(thing, Dispatcher)]
    return {
        f"{one.py_func.__module__}.{one.py_func.__qualname__}": [one.inspect_llvm(types) for types in one.signatures]
        for one in known
        if isinstance(one._cache, DiskCache)
    }


def main() -> None:
    """Compile what the cases of some functions need."""
    for function in sys.argv[1:]:
        for case in cases_of(function):
            evaluate(case)
    print(json.dumps({name: [negated(ir) for ir in irs] for name, irs in kernels().items() if irs}))


if __name__ == "__main__":
    main()
