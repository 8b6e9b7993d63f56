"""Kernels on disk: what one process has compiled, another one must not mistake for something else."""

import dataclasses
import errno
import importlib
import importlib.util
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import caching, compiler, config
from numba.core.dispatcher import Dispatcher

import refloss.losses
from refloss import disk_cache, jit, origin
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
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(refloss.losses.__path__, "refloss.losses.")
    ]
    loops = {value for module in modules for value in vars(module).values() if type(value) in makers}
    assert {type(loop) for loop in loops} == set(makers)
    kernels = [make(loop) for loop in loops for make in makers[type(loop)]]
    every = {id(part): part for kernel in kernels for part in parts(kernel)}
    names = Counter((part.py_func.__module__, part.py_func.__qualname__) for part in every.values())
    assert max(names.values()) == 1, names.most_common(3)


@jit.scalar
def doubled(x):
    return x + x


@jit.scalar
def halved(x):
    return 0.5 * x


def times(factor):
    @jit.scalar
    def scaled(x):
        return factor * x

    return scaled


def loop(name, scalar):
    def evaluate(values):
        for i in range(values.size):
            values[i] = scalar(values[i])

    return jit.kernel(evaluate, name)


@pytest.mark.parametrize(
    ("first", "second"),
    [(doubled, halved), (times(2.0), times(3.0)), (times(0.0), times(-0.0)), (jit.scalar(lambda x: x), doubled)],
)
def test_a_second_loop_of_a_name_is_an_error(first, second, request):
    name = f"taken.{request.node.name}"
    loop(name, first)
    with pytest.raises(ValueError, match=r"two loops are named '.*taken.*share machine code") as raised:
        loop(name, second)
    told_apart = set(origin.parts((first,))) ^ set(origin.parts((second,)))
    assert len(told_apart) >= 2
    assert all(part in str(raised.value) for part in told_apart)
    assert all(re.search(r"\w\.\w", part) for part in told_apart)


def test_the_losses_own_names_cannot_be_taken():
    mse, l1 = (importlib.import_module(f"refloss.losses.{name}").LOOP for name in ("mse", "l1"))
    with pytest.raises(ValueError, match=r"two loops are named 'Loop mse'.*mse._loss.*l1._loss"):
        dataclasses.replace(l1, name="mse")
    assert dataclasses.replace(mse) == mse


def test_the_same_loop_can_be_made_again():
    first, second = loop("again", times(2.0)), loop("again", times(2.0))
    assert first.py_func.__qualname__ == second.py_func.__qualname__
    module = importlib.import_module("refloss.losses.mse")
    before = module.LOOP
    try:
        reloaded = importlib.reload(module).LOOP
        assert reloaded != before
        assert elementwise.compiled(reloaded) is not elementwise.compiled(before)
    finally:
        module.LOOP = before


EDITED = """
import functools
import importlib
import pathlib
import shutil
import sys
import maths
from refloss import jit

def loop(scalar):
    @functools.partial(jit.helper, name="edited")
    def apply(x):
        total = 0.0
        for i in range(100):
            total += scalar(x) / (i + 1)
        return total

    def evaluate(x):
        return apply(x)

    return jit.kernel(evaluate, "edited")

print(f"{loop(maths.scalar)(1.0):.3f}")
if len(sys.argv) > 1:
    path = pathlib.Path(maths.__file__)
    path.write_text(path.read_text().replace("1.0", "2.0"))
    shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)
    print(f"{loop(importlib.reload(maths).scalar)(1.0):.3f}")
"""


def run(folder, *arguments, **environment):
    command = [sys.executable, "-B", str(folder / "program.py"), *arguments]
    settings = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=settings).stdout.split()


def test_an_edited_module_that_is_loaded_again_does_not_get_the_code_of_the_old_one(tmp_path):
    (tmp_path / "program.py").write_text(EDITED)
    maths = "from refloss import jit\n\n@jit.scalar\ndef scalar(x):\n    return x + 1.0\n"
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    (tmp_path / "maths.py").write_text(maths.replace("1.0", "2.0"))
    assert run(tmp_path, NUMBA_CACHE_DIR=new) == ["15.562"]
    (tmp_path / "maths.py").write_text(maths)
    assert run(tmp_path, NUMBA_CACHE_DIR=old) == ["10.375"]
    # Both are on disk now, under names that Numba has numbered alike.
    assert run(tmp_path, new, old, NUMBA_CACHE_DIR=old) == ["10.375", "15.562"]


USER = {
    "program.py": """
import maths
from refloss import jit

def loop(scalar):
    def evaluate(x):
        return scalar(x)

    return jit.kernel(evaluate, "user")

kernel = loop(maths.scalar)
print(kernel(1.0), sum(kernel.stats.cache_hits.values()))
""",
    "maths.py": """
import settings
from inner import shifted
from refloss import jit

@jit.scalar
def scalar(x):
    return shifted(x) * settings.SCALE
""",
    "inner.py": "from refloss import jit\n\n@jit.scalar\ndef shifted(x):\n    return x + 1.0\n",
    "settings.py": "SCALE = 1.0\n",
}


def test_a_loop_of_somebody_elses_goes_stale_with_every_file_that_it_comes_from(tmp_path):
    for name, text in USER.items():
        (tmp_path / name).write_text(text)
    assert run(tmp_path) == ["2.0", "0"]
    assert run(tmp_path) == ["2.0", "1"]
    times_of_all = {path: path.stat() for path in tmp_path.glob("*.py")}

    def edit(name, old, new):
        path = tmp_path / name
        path.write_text(path.read_text().replace(old, new))
        # Neither its size nor its time tells.
        os.utime(path, ns=(times_of_all[path].st_atime_ns, times_of_all[path].st_mtime_ns))

    edit("inner.py", "1.0", "3.0")
    assert run(tmp_path) == ["4.0", "0"]
    edit("settings.py", "1.0", "2.0")
    assert run(tmp_path) == ["8.0", "0"]
    edit("maths.py", "* s", "+ s")
    assert run(tmp_path) == ["6.0", "0"]
    edit("program.py", "kernel(1.0)", "kernel(2.0)")
    assert run(tmp_path)[0] == "7.0"
    for path in tmp_path.glob("*.py"):
        os.utime(path)
    assert run(tmp_path) == ["7.0", "1"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's sources, whose stamp is asked for."""
    source = Path(refloss.__file__).parent
    shutil.copytree(source, tmp_path / "refloss", ignore=shutil.ignore_patterns("__pycache__", "*.nb?"))
    monkeypatch.setattr(origin, "_PACKAGE", tmp_path / "refloss")

    def stamp():
        origin._package_files.cache_clear()
        origin.package_stamp.cache_clear()
        return origin.package_stamp()

    yield tmp_path / "refloss", stamp
    monkeypatch.undo()
    stamp()


@pytest.mark.parametrize(
    "name", ["numerics/pairs.py", "kernels/rows.py", "kernels/gpu/block.py", "losses/mse.py", "jit.py"]
)
def test_the_packages_stamp_is_one_of_contents(package, name):
    root, stamp = package
    before, path = stamp(), root / name
    os.utime(path, ns=(0, 0))
    assert stamp() == before
    text = path.read_text()
    path.write_text(text[:-2] + chr(ord(text[-2]) ^ 1) + text[-1])
    os.utime(path, ns=(0, 0))
    assert stamp() not in {before, None}


def test_the_packages_stamp_knows_new_files_and_does_without_others(package):
    root, stamp = package
    before = stamp()
    (root / "cli.py").write_text("")
    assert stamp() == before
    (root / "losses" / "family").mkdir()
    (root / "losses" / "family" / "new.py").write_text("")
    assert stamp() != before
    for folder in ("numerics", "kernels", "losses"):
        shutil.rmtree(root / folder)
    assert stamp() is None


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Makes the same kernel again, over a folder for machine code of its own."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))

    def make():
        def evaluate(x):
            return x + 1

        return jit.kernel(evaluate, "cached")

    return make


def hits(kernel, argument=1.0):
    """The result, and whether it was on disk."""
    return kernel(argument), sum(kernel.stats.cache_hits.values())


def test_what_is_on_disk_is_used(cached, tmp_path):
    assert hits(cached()) == (2.0, 0)
    assert hits(cached()) == (2.0, 1)
    kernel = cached()
    assert hits(kernel, 1) == (2, 0)
    assert hits(cached(), 1) == (2, 1)
    assert len(list(tmp_path.rglob("*.*"))) == 2
    kernel.recompile()
    assert hits(cached()) == (2.0, 0)


DAMAGE = {
    "empty": lambda content: b"",
    "cut in the hash": lambda content: content[:20],
    "cut in half": lambda content: content[: len(content) // 2],
    "its last byte": lambda content: content[:-1],
    "one bit": lambda content: content[:-999] + bytes([content[-999] ^ 1]) + content[-998:],
    "garbage": lambda content: bytes(range(256)) * 20,
    "zeros": lambda content: bytes(len(content)),
    "longer": lambda content: content + b"0",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_as_good_as_none(cached, tmp_path, damage):
    cached()(1.0)
    (path,) = tmp_path.rglob("*.nbc")
    path.write_bytes(damage(path.read_bytes()))
    assert hits(cached()) == (2.0, 0)
    assert hits(cached()) == (2.0, 1)


def test_a_file_of_another_signature_is_as_good_as_none(cached, tmp_path):
    cached()(1.0)
    (path,) = tmp_path.rglob("*.nbc")
    content = path.read_bytes()
    cached()(1)
    (other,) = set(tmp_path.rglob("*.nbc")) - {path}
    other.write_bytes(content)
    assert hits(cached(), 1) == (2, 0)


def test_a_file_that_cannot_be_taken_in_is_as_good_as_none(cached, monkeypatch):
    cached()(1.0)

    def fail(*_):
        raise ModuleNotFoundError("its module has gone")

    monkeypatch.setattr(compiler.CompileResult, "_rebuild", fail)
    assert hits(cached()) == (2.0, 0)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("operation", ["write_bytes", "replace"])
def test_a_folder_that_cannot_be_written_to_does_not_matter(cached, tmp_path, monkeypatch, operation, reason):
    def fail(self, *_):
        if operation == "write_bytes":
            self.touch()
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(Path, operation, fail)
    assert hits(cached()) == (2.0, 0)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_does_not_matter(cached, monkeypatch, reason):
    cached()(1.0)

    def fail(_):
        raise OSError(reason, os.strerror(reason))

    kernel = cached()
    monkeypatch.setattr(Path, "read_bytes", fail)
    assert hits(kernel) == (2.0, 0)


def test_a_folder_that_is_gone_is_made_again_or_done_without(cached, tmp_path):
    kernel = cached()
    (folder,) = tmp_path.iterdir()
    folder.rmdir()
    assert hits(kernel) == (2.0, 0)
    kernel = cached()
    shutil.rmtree(folder)
    folder.write_text("a file")
    assert hits(kernel) == (2.0, 0)


def test_without_any_folder_kernels_are_compiled(cached, monkeypatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert hits(cached()) == (2.0, 0)
    assert hits(cached()) == (2.0, 0)


def test_code_without_a_file_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    names = {"jit": jit}
    exec("@jit.scalar\ndef scalar(x):\n    return x + 1.0", names)
    kernel, values = loop("typed at a prompt", names["scalar"]), np.ones(2)
    kernel(values)
    assert values.tolist() == [2.0, 2.0]
    assert not list(tmp_path.rglob("*.*"))


def test_numba_is_bounded_and_a_numba_without_its_private_class_is_named(monkeypatch):
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (bound,) = [each for each in project["dependencies"] if each.startswith("numba>")]
    assert bound == "numba>=0.68,<0.69"
    monkeypatch.delattr(caching, "FunctionCache")
    specification = importlib.util.spec_from_file_location("disk_cache_again", disk_cache.__file__)
    with pytest.raises(ImportError, match=rf"Numba {numba.__version__} lacks .*FunctionCache.*install {bound}"):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))
