"""Kernels on disk: what one process has compiled, another one must not mistake for something else."""

import importlib
import pkgutil
import subprocess
import sys
from collections import Counter

from numba.core.dispatcher import Dispatcher

import refloss.losses
from refloss.kernels import elementwise, one_class

MODULE = """
import functools
import sys
from refloss import jit

def loop(name, scalar):
    @functools.partial(jit.helper, name=name)
    def apply(x):
        total = 0.0
        for i in range(100):
            total += scalar(x) / (i + 1)
        return total

    def evaluate(x):
        return apply(x)

    return jit.kernel(evaluate, name)

@jit.scalar
def plus(x):
    return x + 1.0

@jit.scalar
def minus(x):
    return x - 1.0

LOOPS = {"plus": loop("plus", plus), "minus": loop("minus", minus)}
print(*(f"{LOOPS[name](1.0):.4f}" for name in sys.argv[1:]))
"""


def test_loops_that_two_processes_have_compiled_are_told_apart_in_a_third(tmp_path):
    def run(*names):
        arguments = [sys.executable, str(tmp_path / "loops.py"), *names]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()

    (tmp_path / "loops.py").write_text(MODULE)
    plus, minus = run("plus"), run("minus")
    assert plus == ["10.3748"]
    assert minus == ["0.0000"]
    assert len(list(tmp_path.glob("__pycache__/*.nbc"))) == 2
    assert run("plus", "minus") == plus + minus
    assert run("minus", "plus") == minus + plus


def parts(dispatcher):
    """A loop, and what it calls that is defined along with it."""
    cells = [cell.cell_contents for cell in dispatcher.py_func.__closure__ or ()]
    inner = [value for value in cells if isinstance(value, Dispatcher) and "<locals>" in value.py_func.__qualname__]
    return [dispatcher, *(part for value in inner for part in parts(value))]


def test_every_loop_has_a_name_of_its_own():
    makers = {elementwise.Loop: elementwise.compiled, one_class.OneClassLoop: one_class.compiled}
    modules = [
        importlib.import_module(f"refloss.losses.{module.name}")
        for module in pkgutil.iter_modules(refloss.losses.__path__)
    ]
    loops = {
        value: makers[type(value)](value)
        for module in modules
        for value in vars(module).values()
        if type(value) in makers
    }
    assert len(loops) > 8
    every = {id(part): part for value in loops.values() for part in parts(value)}
    names = Counter((part.py_func.__module__, part.py_func.__qualname__) for part in every.values())
    assert max(names.values()) == 1, names.most_common(3)
