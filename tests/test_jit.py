"""Kernels on disk: what one process has compiled, another one must not mistake for something else."""

import importlib
import pkgutil
import subprocess
import sys
from collections import Counter

from numba.core.dispatcher import Dispatcher

import refloss.losses
from refloss.kernels.boxes import loop as boxes
from refloss.kernels.distillation import loop as distillation
from refloss.kernels.elementwise import loop as elementwise
from refloss.kernels.masks import loop as masks
from refloss.kernels.matching import loop as matching
from refloss.kernels.one_class import loop as one_class
from refloss.kernels.softmax import columns
from refloss.kernels.softmax import loop as softmax

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
    makers = {
        elementwise.Loop: (elementwise.compiled,),
        one_class.OneClassLoop: (one_class.compiled,),
        softmax.SoftmaxLoop: (
            softmax.label_rows,
            softmax.smoothed_rows,
            softmax.probability_rows,
            columns.label_columns,
        ),
        boxes.BoxLoop: (boxes.compiled,),
        masks.MaskLoop: (masks.mask_pairs,),
        masks.DiceLoop: (masks.dice_masks,),
        distillation.DistillationLoop: (distillation.teach, distillation.distil),
        matching.MatchingLoop: (matching.match_costs,),
    }
    modules = [
        importlib.import_module(f"refloss.losses.{module.name}")
        for module in pkgutil.iter_modules(refloss.losses.__path__)
    ]
    loops = {value for module in modules for value in vars(module).values() if type(value) in makers}
    assert {type(loop) for loop in loops} == set(makers)
    kernels = [make(loop) for loop in loops for make in makers[type(loop)]]
    every = {id(part): part for kernel in kernels for part in parts(kernel)}
    names = Counter((part.py_func.__module__, part.py_func.__qualname__) for part in every.values())
    assert max(names.values()) == 1, names.most_common(3)
