"""Kernels that are compiled ahead of time: when they are loaded, when not, and how a wheel comes by them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from concurrent.futures import Future
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from llvmlite import binding
from numba.core import caching, config

import refloss
from refloss import ahead, cli, disk_cache, jit, levels
from tests.compiled import compiled
from tests.test_jit import DAMAGE, hits

ROOT = Path(__file__).parents[1]
FEATURES = binding.get_host_cpu_features().flatten()
HERE = levels.targets((binding.get_process_triple(), binding.get_host_cpu_name(), FEATURES))
X86 = "x86_64-unknown-linux-gnu"
V3 = ",".join(f"+{name}" for name in sorted(levels.LEVELS["x86-64-v3"].needs))
V4 = ",".join(f"+{name}" for name in sorted(levels.LEVELS["x86-64-v4"].needs))


@pytest.mark.parametrize(
    ("own", "names"),
    [
        ((X86, "znver4", f"+64bit,{V4}"), ["native", "x86-64-v4", "x86-64-v3"]),
        ((X86, "haswell", f"{V3},-avx512f"), ["native", "x86-64-v3"]),
        ((X86, "znver4", V4.replace("+fma", "-fma")), ["native"]),
        ((X86, "znver4", V4.replace("+avx512vl", "-avx512vl")), ["native", "x86-64-v3"]),
        ((X86, "x86-64-v2", ""), ["native"]),
        ((X86, "x86-64-v3", ""), ["native", "x86-64-v3"]),
        (("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+lse"), ["native", "aarch64"]),
        (("aarch64-unknown-linux-gnu", "neoverse-n1", V4), ["native", "aarch64"]),
        (("armv7l-unknown-linux-gnueabihf", "cortex-a9", "+neon"), ["native"]),
        (("riscv64-unknown-linux-gnu", "generic", V4), ["native"]),
    ],
)
def test_a_processor_has_the_levels_whose_features_it_has(own, names):
    found = levels.targets(own)
    assert list(found) == names
    assert found["native"] == own
    assert all(target[0] == own[0] for target in found.values())


@pytest.mark.skipif(not binding.get_process_triple().startswith("x86_64"), reason="LLVM knows other features here")
def test_llvm_calls_the_features_of_levels_as_they_are_called_here():
    known = {feature[1:] for feature in FEATURES.split(",")}
    for name in ("x86-64-v3", "x86-64-v4"):
        assert levels.LEVELS[name].needs <= known


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Makes the same kernel again, over a folder of its own and one of kernels that came with the package."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setattr(levels, "SHIPPED", tmp_path / "shipped")

    def make():
        def evaluate(x):
            return x + 1

        return jit.kernel(evaluate, "shipped")

    return make


def ship(shipped, tmp_path, level="native"):
    """Have what is compiled here come with the package."""
    assert hits(shipped()) == (2.0, 0)
    (path,) = (tmp_path / "own").rglob("*.nbc")
    folder = tmp_path / "shipped" / level
    folder.mkdir(parents=True)
    return path.replace(folder / path.name)


def test_what_came_with_the_package_is_used_and_nothing_written_beside_it(shipped, tmp_path):
    path = ship(shipped, tmp_path)
    path.parent.chmod(0o500)
    try:
        assert hits(shipped()) == (2.0, 1)
        assert hits(shipped(), 1) == (2, 0)
        shipped().recompile()
    finally:
        path.parent.chmod(0o700)
    assert list(path.parent.iterdir()) == [path]


def test_what_came_with_the_package_is_used_where_no_folder_can_be_written_to(shipped, tmp_path, monkeypatch):
    ship(shipped, tmp_path)
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert hits(shipped()) == (2.0, 1)
    assert hits(shipped(), 1) == (2, 0)


def test_ones_own_code_comes_first(shipped, tmp_path):
    path = ship(shipped, tmp_path)
    content = path.read_bytes()
    path.unlink()
    assert hits(shipped()) == (2.0, 0)
    path.write_bytes(b"not looked at")
    assert hits(shipped()) == (2.0, 1)
    (own,) = (tmp_path / "own").rglob("*.nbc")
    own.write_bytes(b"damaged")
    path.write_bytes(content)
    assert hits(shipped()) == (2.0, 1)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_of_the_package_is_as_good_as_none(shipped, tmp_path, damage):
    path = ship(shipped, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert hits(shipped()) == (2.0, 0)
    assert hits(shipped()) == (2.0, 1)


@pytest.mark.parametrize("name", ["Numba", "llvmlite", "Python"])
def test_kernels_for_another_numba_or_python_are_not_loaded(shipped, tmp_path, monkeypatch, name):
    path = ship(shipped, tmp_path)
    monkeypatch.setitem(disk_cache.IDENTITY, name, "0.68.99")
    # Under the name that it would have been looked for, too.
    path.replace(
        path.with_name(path.name.replace(f".cpython-3{sys.version_info[1]}", f".{disk_cache.IDENTITY['Python']}"))
    )
    assert hits(shipped()) == (2.0, 0)


def test_kernels_of_other_sources_are_not_loaded(shipped, tmp_path, monkeypatch):
    ship(shipped, tmp_path)
    monkeypatch.setattr("refloss.origin.package_stamp", lambda: "edited")
    assert hits(shipped()) == (2.0, 0)


def test_kernels_of_a_level_that_this_processor_is_not_of_are_not_loaded(shipped, tmp_path):
    ship(shipped, tmp_path, "x86-64-v5")
    assert hits(shipped()) == (2.0, 0)


def test_a_kernel_from_disk_is_not_linked_into_another_function(shipped, tmp_path):
    ship(shipped, tmp_path)
    kernel = shipped()
    assert hits(kernel) == (2.0, 1)
    with pytest.raises(RuntimeError, match="unfit for linking"):
        compiled(kernel)(1.0)


# Two losses, and a sum that they share.
FEW = frozenset({"bce", "nll"})
BITS = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from refloss import disk_cache, levels
from refloss.files import nested
from refloss.golden.corpus import corpus
from refloss.registry import FUNCTIONS
levels.SHIPPED = Path(sys.argv[1])
levels.LEVELS = {name: level for name, level in levels.LEVELS.items() if name == sys.argv[2]}
bits = {}
with np.errstate(all="ignore"):
    for case in corpus(set(sys.argv[3:])):
        result = FUNCTIONS[case.function].call(**nested(case.inputs), **case.parameters, grad_output=case.grad_output)
        arrays = [result.loss, *result.grads.values(), *result.components.values()]
        bits[case.id] = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()
print(json.dumps({"bits": bits, "compiled": disk_cache.compiled_here}))
"""


def bits_of(folder, level, functions, cache):
    """What a process computes that has the kernels of a level, and what it has compiled all the same."""
    command = [sys.executable, "-c", BITS, str(folder), level, *sorted(functions)]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)} if cache else None
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Folders of a few kernels, for every level that this processor is of."""
    folder = tmp_path_factory.mktemp("kernels")
    names = [name for name in HERE if name != "native"]
    # One process after several: each compiles the scalars that its kernels share.
    for name, workers in zip(names, (2, *(1 for _ in names)), strict=False):
        (folder / name).mkdir()
        assert ahead.compile_kernels(folder / name, name, only=FEW, workers=workers) == 3
    return folder


def test_every_level_gives_the_same_bits(kernels, tmp_path):
    here = bits_of(tmp_path, "none", FEW, None)["bits"]
    for path in kernels.iterdir():
        there = bits_of(kernels, path.name, FEW, tmp_path / path.name)
        assert there == {"bits": here, "compiled": []}
        assert not list((tmp_path / path.name).rglob("*.nbc"))


def test_what_a_level_lacks_is_compiled(kernels, tmp_path):
    path = max(kernels.glob("*/*deposit_all*"))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        there = bits_of(kernels, path.parent.name, FEW, tmp_path)
    finally:
        path.write_bytes(content)
    (compiled_there,) = there["compiled"]
    assert "deposit_all" in compiled_there


def test_kernels_that_are_there_are_not_compiled_again(kernels):
    for path in kernels.iterdir():
        before = {file: file.read_bytes() for file in path.iterdir()}
        assert ahead.compile_kernels(path, path.name, only=FEW, workers=1) == 0
        assert {file: file.read_bytes() for file in path.iterdir()} == before


def test_a_level_that_this_processor_is_not_of_is_an_error(tmp_path):
    missing = next(name for name in levels.LEVELS if name not in HERE)
    with pytest.raises(ValueError, match=f"{missing}: this processor, .*, is not of that level"):
        ahead.compile_kernels(tmp_path, missing, only=FEW, workers=1)
    assert not list(tmp_path.iterdir())


class Pool:
    """Computes at once; a case can be done when it has been asked for often enough."""

    def __init__(self, *tries):
        self.tries = list(tries)

    def submit(self, _, case=None):
        future = Future()
        if case is None:
            future.set_result(len(self.tries))
        else:
            self.tries[case] -= 1
            done = self.tries[case] == 0
            future.set_result((done, int(done)))
        return future


def test_a_case_that_was_put_off_is_computed_when_others_have_been():
    reports = []
    assert ahead._share_out(Pool(1, 2, 3, 2), lambda *done: reports.append(done)) == 4
    assert reports == [(1, 4)] * 4


def test_cases_that_wait_for_nobody_are_an_error():
    with pytest.raises(OSError, match="cannot be kept"):
        ahead._share_out(Pool(1, 100), None)


@pytest.fixture
def told(capsys, monkeypatch, tmp_path):
    """What refloss --version --verbose says."""
    monkeypatch.setattr(levels, "SHIPPED", tmp_path)

    def run():
        monkeypatch.setattr(sys, "argv", ["refloss", "--version", "--verbose"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        return capsys.readouterr().out

    return run


def test_the_version_says_which_kernels_came_with_it(told, tmp_path):
    assert "came with it: none\nkernels are compiled when" in told()
    best = next(name for name in HERE if name != "native")
    identity = disk_cache.identity(HERE[best])
    for name in ("native", best):
        (tmp_path / name).mkdir()
        (tmp_path / name / levels.IDENTITY_FILE).write_text(json.dumps(identity))
    words = told()
    assert f"came with it: native, {best}\nloaded on this processor, {HERE['native'][1]}: {best}\n" in words
    assert "when they are first called" not in words
    assert "kept in " in words


@pytest.mark.parametrize("name", ["Numba", "llvmlite", "Python", "sources"])
def test_the_version_says_why_none_is_loaded(told, tmp_path, name):
    best = next(name for name in HERE if name != "native")
    (tmp_path / best).mkdir()
    identity = disk_cache.identity(HERE[best]) | {name: "another"}
    (tmp_path / best / levels.IDENTITY_FILE).write_text(json.dumps(identity))
    assert f": none, they are for {name} another\nkernels are compiled when" in told()
    (tmp_path / best).rename(tmp_path / "x86-64-v5")
    assert ": none, it lacks what each of these levels needs\n" in told()


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds a wheel of the project, with kernels that are none."""
    made = []

    def compile_kernels(folder, level, *, only):
        made.append((level, only))
        (folder / "kernel.nbc").write_bytes(b"")
        (folder / levels.IDENTITY_FILE).write_text("{}")

    monkeypatch.setattr(ahead, "compile_kernels", compile_kernels)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def wheel(asked=None):
        monkeypatch.delenv("REFLOSS_LEVELS", raising=False)
        if asked is not None:
            monkeypatch.setenv("REFLOSS_LEVELS", asked)
        path = Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
        with zipfile.ZipFile(path) as archive:
            return path.name, [name for name in archive.namelist() if "/compiled/" in name]

    return wheel, made


PURE = "-py3-none-any.whl"
MACHINE_CODE = f"-cp3{sys.version_info[1]}-cp3{sys.version_info[1]}-"


def test_a_wheel_has_kernels_for_the_machine_at_hand_or_for_named_levels(build):
    wheel, made = build
    name, files = wheel()
    assert MACHINE_CODE in name
    assert files == ["refloss/compiled/native/identity.json", "refloss/compiled/native/kernel.nbc"]
    name, files = wheel("x86-64-v3, aarch64")
    assert MACHINE_CODE in name
    assert {Path(file).parent.name for file in files} == {"x86-64-v3", "aarch64"}
    assert made == [("native", None), ("x86-64-v3", None), ("aarch64", None)]


def test_some_wheels_have_none(build, monkeypatch):
    wheel, made = build
    name, files = wheel("none")
    assert (name.endswith(PURE), files) == (True, [])
    assert made == []
    with pytest.raises(ValueError, match="'x86-64-v9' is none of x86-64-v4, x86-64-v3, aarch64"):
        wheel("x86-64-v9")

    def fail(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(ahead, "compile_kernels", fail)
    name, files = wheel()
    assert (name.endswith(PURE), files) == (True, [])
    with pytest.raises(OSError, match="no room"):
        wheel("x86-64-v3")


@pytest.fixture
def backend():
    """hatch_build, as a frontend imports it."""
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_an_editable_installation_compiles_nothing(build, backend, tmp_path):
    _, made = build
    added = {"force_include": {}}
    hook = backend.CompiledKernels(str(ROOT), {}, None, None, str(tmp_path), "wheel")
    hook.initialize("editable", added)
    hook.finalize("editable", added, "")
    assert (made, added) == ([], {"force_include": {}})
    hook.initialize("standard", added)
    assert [name for name, _ in made] == ["native"]
    (folder,) = added["force_include"]
    assert Path(folder).is_dir()
    hook.finalize("standard", added, "")
    assert not Path(folder).exists()


def test_only_a_wheel_with_kernels_needs_numba_while_it_is_built(backend, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("REFLOSS_LEVELS", raising=False)
    assert any(each.startswith("numba") for each in backend.get_requires_for_build_wheel())
    assert not any(each.startswith("typer") for each in backend.get_requires_for_build_wheel())
    assert not any(each.startswith("numba") for each in backend.get_requires_for_build_editable())
    assert not any(each.startswith("numba") for each in backend.get_requires_for_build_sdist())
    monkeypatch.setenv("REFLOSS_LEVELS", "none")
    assert backend.get_requires_for_build_wheel() == []


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source archive, unpacked, and what is in the wheel that is built from it: without machine code, installed."""
    folder = tmp_path_factory.mktemp("distributions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFLOSS_LEVELS", "none")
        with tarfile.open(next(SdistBuilder(str(ROOT)).build(directory=str(folder)))) as archive:
            archive.extractall(folder, filter="data")
        (source,) = (path for path in folder.iterdir() if path.is_dir())
        wheel = next(WheelBuilder(str(source)).build(directory=str(folder), versions=["standard"]))
    installed = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target"]
    subprocess.run([*command, str(installed), wheel], check=True, capture_output=True)
    return source, installed


@pytest.fixture
def outside(distributions, tmp_path):
    """Runs Python with what was installed, in a folder that knows nothing of the repository."""

    def run(*arguments):
        environment = os.environ | {"PYTHONPATH": str(distributions[1])}
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
        return subprocess.run([sys.executable, *arguments], check=True, **options).stdout

    return run


def kept(folder):
    """The files of a folder that are no leavings; docs/api is written when the site is built."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    leavings = (".", "__pycache__", *(("api",) if folder.name == "docs" else ()))
    return {path for path in paths if not any(part.startswith(leavings) for part in path.parts)}


def test_a_source_archive_has_all_that_its_tests_need(distributions):
    source, _ = distributions
    for name in ("refloss", "tests", "conformance", "benchmarks", "examples", "docs"):
        assert kept(source / name) == kept(ROOT / name)
        assert not list((source / name).rglob("*.nbc"))
    alone = {path.name for path in source.iterdir() if path.is_file()}
    pages = {path.name for path in ROOT.glob("*.md")} | {"LICENSE", "CITATION.cff"}
    assert alone >= {*pages, "pyproject.toml", "hatch_build.py", "noxfile.py"}
    assert (source / ".ci" / "run").exists()


def test_a_wheel_has_the_package_and_nothing_else(distributions):
    _, installed = distributions
    assert kept(installed / "refloss") == kept(ROOT / "refloss")
    assert {path.name for path in installed.iterdir()} == {"refloss", "bin", f"refloss-{refloss.__version__}.dist-info"}
    assert (installed / "refloss" / "py.typed").exists()


def test_a_wheel_works_outside_of_the_repository(distributions, outside):
    where = outside("-c", "import refloss; print(refloss.__file__, refloss.cross_entropy.__name__)")
    assert where.split() == [str(distributions[1] / "refloss" / "__init__.py"), "cross_entropy"]
    assert (
        outside("-m", "refloss", "--version").strip()
        == outside(str(distributions[1] / "bin" / "refloss"), "--version").strip()
    )
    assert refloss.__version__ in outside("-m", "refloss", "--version")
    assert len(json.loads(outside("-m", "refloss", "list", "--json"))["functions"]) == len(refloss.registry.FUNCTIONS)


def test_what_a_package_index_shows_leads_nowhere_but_to_addresses(distributions):
    (metadata,) = distributions[1].glob("*.dist-info/METADATA")
    told = PathDistribution(metadata.parent).metadata
    text = told.get_payload()
    assert "## Start" in text
    assert told["Description-Content-Type"] == "text/markdown"
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link] == []
    assert "(docs/tolerances.md)" in prose
    assert "<!--" not in prose


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see [docs/a.md](docs/a.md).", "see docs/a.md."),
        ("[what](docs/a.md#b) and [this](https://a.b/c)", "what (docs/a.md#b) and [this](https://a.b/c)"),
        ("a[1, 2) [what](b.md)", "a[1, 2) what (b.md)"),
        ("before\n\n![a picture](docs/a.svg)\n\nafter", "before\n\nafter"),
        ("[below](#below)", "[below](#below)"),
    ],
)
def test_links_into_the_repository_are_names(backend, text, shown):
    assert backend.without_relative_links(text) == shown


def test_a_citation_is_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {refloss.__version__}" in lines


def test_what_is_said_to_be_supported_is_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r":: Python :: 3\.\d+$", name)}
    (tried,) = re.findall(r"^PYTHONS = \((.*)\)$", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert named <= set(re.findall(r"[\d.]+", tried))
    assert project["requires-python"] == f">={min(named)}"
