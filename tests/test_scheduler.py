"""Commands with --scheduler: what a cluster does is what one process does."""

import contextlib
import functools
import hashlib
import json
import os
import queue
import re
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import distributed
import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss import cli
from refloss.commands import chunks, cluster, progress
from refloss.files import load_tensors, save_tensors
from refloss.golden import store


@pytest.fixture(scope="module")
def address():
    """A scheduler with two workers of one thread each, on this machine alone."""
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": False},
    ) as local:
        yield local.scheduler_address


@pytest.fixture
def client(address):
    with cluster.connected(address) as client:
        yield client


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command line in this process; returns status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["refloss", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Golden cases, one of them unreadable, and a candidate: right, wrong, unreadable, silent, and with a note."""
    golden, candidate = (tmp_path_factory.mktemp(name) for name in ("golden", "candidate"))
    store.write(golden, {"mse"})
    paths = sorted(golden.glob("*.safetensors"))
    for i, path in enumerate(paths[:-2]):
        sign = -1 if i % 3 == 1 else 1
        tensors = {name.removeprefix("expected."): np.array(value) for name, value in load_tensors(path).items()}
        grads = {name: sign * value for name, value in tensors.items() if name.startswith("grad.")}
        save_tensors(candidate / path.name, {"loss": tensors["loss"], **grads})
    (candidate / paths[0].name).write_bytes(b"not tensors")
    manifest = golden / "manifest.json"
    digests = [hashlib.sha256(paths[2].read_bytes()).hexdigest(), hashlib.sha256(b"not tensors").hexdigest()]
    paths[2].write_bytes(b"not tensors")
    manifest.write_text(manifest.read_text().replace(*digests))
    (candidate / "notes.txt").write_text("")
    return golden, candidate


def test_a_comparison_is_that_of_one_process(run, folders, address, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    names = [folder.name for folder in folders]
    ours, theirs = (run("compare", *names, "--json", *options) for options in ([], ["--scheduler", address]))
    assert untimed(theirs[1]) == untimed(ours[1])
    assert (theirs[0], theirs[2]) == (ours[0], ours[2]) == (1, "refloss: notes.txt: no case has this file\n")
    cases = json.loads(theirs[1])["cases"]
    assert {case["passed"] for case in cases} == {True, False, None}
    assert all(case["seconds"] > 0 for case in cases)
    (message,) = (case["message"] for case in cases if "unusable" in case["message"])
    assert re.match(r"the golden case is unusable: [\w-]+\.safetensors: not a readable \.safetensors file: ", message)


def untimed(text):
    """A judgement as JSON without what it took, and without how it was asked for."""
    told = json.loads(text)
    for part in (told, *told["cases"]):
        del part["seconds"]
    return {key: value for key, value in told.items() if key != "command"}


@pytest.mark.parametrize("options", [["--grads", "input"], ["--grads", "sugar"], ["--cases", "tea"]], ids=" ".join)
def test_names_are_those_of_all_cases(run, folders, address, options):
    assert run("compare", *folders, *options, "--scheduler", address) == run("compare", *folders, *options)


def late_if_first(item):
    time.sleep(0.3 * (item == 0))
    return item, os.getpid()


def test_results_come_in_the_order_of_the_items(address):
    reports = []
    with cluster.each(address) as each:
        told = each(late_if_first, range(5), lambda *report: reports.append(report))
    assert [item for item, _ in told] == [*range(5)]
    assert os.getpid() not in {process for _, process in told}
    assert reports == [(0, 5), *[(1, 5)] * 5]


def end_first_worker(mark, item):
    """Work that ends the first worker which does it."""
    if item == 1 and not mark.exists():
        mark.touch()
        os._exit(1)
    return -item


def test_a_worker_that_ends_changes_nothing(address, tmp_path):
    with cluster.each(address) as each:
        told = each(functools.partial(end_first_worker, tmp_path / "mark"), range(3), lambda *_: None)
    assert (told, (tmp_path / "mark").exists()) == ([0, -1, -2], True)


def test_a_worker_that_ends_changes_nothing_in_a_file(client, tmp_path):
    chunked = da.from_array(np.arange(4.0), 1).map_blocks(lambda block: end_first_worker(tmp_path / "mark", block))
    chunks.write(client, {"grad.x": chunked, "loss": np.float64(0.5)}, tmp_path / "parts.safetensors")
    save_tensors(tmp_path / "whole.safetensors", {"grad.x": -np.arange(4.0), "loss": np.float64(0.5)})
    assert (tmp_path / "mark").exists()
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


WORKER: Any = SimpleNamespace(address="tcp://10.0.0.7:1")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (distributed.KilledWorker("x", WORKER, 3), "workers end while they do the same piece of work: "),
        (CancelledError("connection lost"), "the work is lost: connection lost"),
        (ModuleNotFoundError("No module named 'refloss'"), "a worker lacks what is here: No module named 'refloss'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_with_a_cluster_is_told_with_its_address(address, error, words):
    with pytest.raises(RuntimeError, match=re.escape(f"{address}: {words}")), cluster.connected(address):
        raise error


def fail_at(number, item):
    if item == number:
        raise ValueError(f"{item} is unlucky")


def test_an_error_of_a_worker_is_an_error_here(address):
    with pytest.raises(ValueError, match="13 is unlucky"), cluster.each(address) as each:
        each(functools.partial(fail_at, 13), range(12, 15), lambda *_: None)


def test_a_worker_with_another_refloss_is_an_error(address, monkeypatch):
    version = refloss.__version__
    monkeypatch.setattr(refloss, "__version__", "0.0.7")
    told = f"a worker has refloss {version}; expected 0.0.7"
    with pytest.raises(RuntimeError, match=re.escape(told)), cluster.each(address) as each:
        each(abs, [1], lambda *_: None)


@pytest.mark.parametrize("address", ["127.0.0.1", "foo", "foo:1x", "tcp://foo", ""])
def test_what_is_no_address_is_said_at_once(run, folders, address):
    status, out, err = run("compare", *folders, "--scheduler", address)
    words = f"refloss: --scheduler: {address!r} is no address; expected one such as tcp://HOST:8786\n"
    assert (status, out, err) == (2, "", words)


def test_no_scheduler_there(run, folders):
    with dask.config.set({"distributed.comm.timeouts.connect": "50ms"}):
        status, out, err = run("compare", *folders, "--scheduler", "tcp://127.0.0.1:1")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "tcp://127.0.0.1:1" in err


@pytest.mark.parametrize("command", ["compare", "compute"])
def test_without_dask_the_error_says_how_to_install_it(run, folders, tmp_path, monkeypatch, command):
    of = {"compare": folders, "compute": ["mse", *ones(tmp_path)]}
    monkeypatch.setitem(sys.modules, "distributed", None)
    status, out, err = run(command, *of[command], "--scheduler", "tcp://127.0.0.1:1")
    assert (status, out, err) == (2, "", 'refloss: --scheduler: there is no Dask: pip install "refloss[dask]"\n')


WITHOUT = """
import contextlib, json, sys
sys.modules["dask"] = sys.modules["distributed"] = None
from refloss.cli import main
for sys.argv in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit):
        main()
"""


def ones(folder):
    """Options of a loss of two arrays."""
    np.save(folder / "x.npy", np.ones(3))
    return ["--input", folder / "x.npy", "--target", folder / "x.npy"]


def test_without_a_scheduler_nobody_needs_dask(run, folders, tmp_path):
    commands = [["compare", *folders, "--cases", "mse-sum"], ["compute", "mse", *ones(tmp_path)]]
    listed = json.dumps([["refloss", *map(str, command)] for command in commands])
    done = subprocess.run([sys.executable, "-c", WITHOUT, listed], capture_output=True, text=True, check=False)
    told = [run(*command) for command in commands]
    assert (done.stdout, done.stderr) == tuple("".join(outcome[i] for outcome in told) for i in (1, 2))


def in_file(path, arrays):
    """A file of arrays, in the format that its name says."""
    if path.suffix == ".safetensors":
        save_tensors(path, arrays)
    elif path.name.endswith(".small.npz"):
        np.savez_compressed(path, **arrays)
    else:
        np.savez(path, **arrays)
    return path


def language(dtype=np.float32, shape=(3, 40, 33)):
    """Logits and labels, some of which are ignored."""
    generator = np.random.default_rng(0)
    labels = generator.integers(shape[-1], size=shape[:-1])
    labels[1, 7:30] = -100
    return {"logits": generator.standard_normal(shape).astype(dtype), "labels": labels}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "SIZE", 1000)


def both(run, folder, address, *arguments):
    """What a command says and writes, without a scheduler and with one."""
    outcomes = []
    for options in ([], ["--scheduler", address]):
        out = folder / f"out-{len(options)}.safetensors"
        told = run("compute", *arguments, "--out", out, *options)
        assert run("compute", *arguments, *options) == told
        assert told[0] == 0
        outcomes.append((*told, out.read_bytes()))
    return outcomes


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ["in.npz", "in.small.npz", "in.safetensors"])
def test_a_loss_of_chunks_has_the_bytes_of_one_process(run, address, tmp_path, name):
    dtype = ml_dtypes.bfloat16 if name == "in.safetensors" else np.float32
    path = in_file(tmp_path / name, language(dtype))
    expected, told = both(run, tmp_path, address, "causal_lm", path, "--z-loss", "0.5", "--grad-output", "-0.5")
    assert told == expected
    assert expected[1].splitlines()[-2].split() == ["tokens", f"{2 * 39 + 16}"]


def test_components_come_in_their_order(run, address, tmp_path):
    path = in_file(tmp_path / "in.npz", {"logits": np.arange(5.0) / 3, "index": np.array(2)})
    expected, told = both(run, tmp_path, address, "selected_log_probs", path)
    assert told == expected
    assert [line.split()[0] for line in told[1].splitlines()] == ["loss", "log_probs", "entropy"]


@pytest.mark.usefixtures("small_chunks")
def test_options_and_layouts_are_those_of_one_process(run, address, tmp_path):
    generator = np.random.default_rng(1)
    np.save(tmp_path / "x.npy", np.asfortranarray(generator.standard_normal((5, 7, 9))))
    np.save(tmp_path / "g.npy", generator.standard_normal((5, 9)).astype(np.float32))
    np.save(tmp_path / "y.npy", generator.integers(7, size=(5, 9)).astype(np.int16))
    np.save(tmp_path / "w.npy", generator.random(7))
    files = ["--logits", tmp_path / "x.npy", "--target", tmp_path / "y.npy", "--weight", tmp_path / "w.npy"]
    options = ["--reduction", "none", "--grad-output", tmp_path / "g.npy", "--grad-dtype", "float16"]
    expected, told = both(run, tmp_path, address, "cross_entropy", *files, *options)
    assert told == expected


@pytest.mark.parametrize(
    ("function", "arrays", "options"),
    [
        ("moe_load_balancing", {f"router_logits.{i}": np.eye(4, 3) * i for i in range(2)}, ["--top-k", 2]),
        ("masked_lm", {"logits": np.arange(24.0).reshape(6, 4) / 7, "labels": np.arange(6).reshape(2, 3) % 4}, []),
        ("mse", {"input": np.empty((0, 3)), "target": np.empty((0, 3))}, []),
    ],
)
def test_what_has_no_chunks_is_computed_as_a_whole(run, address, tmp_path, function, arrays, options):
    path = in_file(tmp_path / "in.npz", arrays)
    expected, told = both(run, tmp_path, address, function, path, *options)
    assert told == expected


def test_a_golden_case_is_that_of_one_process(run, address, tmp_path):
    path = in_file(tmp_path / "in.npz", language())
    files = {}
    for i, options in enumerate([[], ["--scheduler", address]]):
        assert run("compute", "masked_lm", path, "--golden", tmp_path / f"golden{i}", *options)[0] == 0
        files[i] = {file.name: file.read_bytes() for file in (tmp_path / f"golden{i}").iterdir()}
    assert files[0] == files[1]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("place", [(0, 3), (2, 39)])
def test_a_wrong_label_in_a_chunk_is_one_line_and_no_file(run, address, tmp_path, place):
    arrays = language()
    arrays["labels"][place] = 33
    path, out = in_file(tmp_path / "in.npz", arrays), tmp_path / "out.safetensors"
    status, told, err = run("compute", "masked_lm", path, "--out", out, "--scheduler", address)
    assert (status, told, len(err.splitlines())) == (2, "", 1)
    assert " = 33 is outside [0, 33)" in err
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.usefixtures("small_chunks")
def test_progress_counts_the_chunks_of_the_largest_array(client, tmp_path):
    reports = queue.Queue()
    np.save(tmp_path / "x.npy", np.arange(3000.0))
    values = load_tensors(tmp_path / "x.npy")[""]

    def report(*told):
        reports.put(told)

    with cluster.told(client, report) as topic:
        lazy = chunks.lazily({"labels": values[:2], "logits": values, "weight": np.ones(9999)}, topic, report)
        assert client.compute(lazy["logits"].sum() + lazy["labels"].sum()).result() == values.sum() + 1
        assert [reports.get(timeout=60) for _ in range(25)] == [(0, 24), *[(1, 24)] * 24]
    assert reports.empty()


def report_often():
    with progress.progress("rows") as report:
        for done in (0, 1, 2):
            report(done, 7)
        time.sleep(2 * cluster.PERIOD)
        report(3, 7)
    return "done"


def test_progress_of_a_whole_call_is_shown_here(client, monkeypatch):
    reports = queue.Queue()
    monkeypatch.setattr(cluster, "progress", lambda _: contextlib.nullcontext(lambda *report: reports.put(report)))
    assert cluster.call(client, report_often) == "done"
    told = [reports.get(timeout=60)]
    while sum(done for done, _ in told) < 6:
        told.append(reports.get(timeout=60))
    assert told[0] == (0, 7)
    assert {total for _, total in told} == {7}


def test_neither_arrays_nor_gradients_come_to_the_client(client, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "SIZE", 1 << 20)
    path, out = in_file(tmp_path / "in.npz", language(shape=(2, 512, 2048))), tmp_path / "out.safetensors"
    arrays = load_tensors(path)
    tracemalloc.start()
    try:
        chunks.write(client, refloss.masked_lm(**chunks.lazily(arrays, "topic", lambda *_: None)).grads, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    gradient = load_tensors(out)["logits"]
    assert np.array_equal(gradient, refloss.masked_lm(**arrays).grads["logits"])
    assert peak < gradient.nbytes / 2
