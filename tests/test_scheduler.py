"""Commands with --scheduler: what a cluster does is what one process does."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import dask.array as da
import distributed
import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss import cli
from refloss.commands import chunks, cluster, on_disk
from refloss.files import load_tensors, save_tensors
from refloss.golden import store

LIMIT = 2  # workers that a piece of work may end


@pytest.fixture(scope="module")
def address():
    """A scheduler with two workers of one thread each, on this machine alone."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": LIMIT - 1}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
        ) as local,
    ):
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
    """Golden cases, one of them changed since, and a candidate: right, wrong, unreadable, silent, and with a note."""
    golden, candidate = (tmp_path_factory.mktemp(name) for name in ("golden", "candidate"))
    store.write(golden, {"mse"})
    paths = sorted(golden.glob("*.safetensors"))
    for i, path in enumerate(paths[:-2]):
        sign = -1 if i % 3 == 1 else 1
        tensors = {name.removeprefix("expected."): np.array(value) for name, value in load_tensors(path).items()}
        grads = {name: sign * value for name, value in tensors.items() if name.startswith("grad.")}
        save_tensors(candidate / path.name, {"loss": tensors["loss"], **grads})
    (candidate / paths[0].name).write_bytes(b"not tensors")
    paths[2].write_bytes(paths[2].read_bytes() + b" ")
    (candidate / "notes.txt").write_text("")
    return golden, candidate


def test_a_comparison_is_that_of_one_process(run, folders, address, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    names = [folder.name for folder in folders]
    expected = run("compare", *names)
    assert run("compare", *names, "--scheduler", address) == expected
    assert (expected[0], expected[2]) == (1, "refloss: notes.txt: no case has this file\n")
    ours, theirs = (run("compare", *names, "--json", *options)[1] for options in ([], ["--scheduler", address]))
    assert untimed(theirs) == untimed(ours)
    cases = json.loads(theirs)["cases"]
    assert {case["passed"] for case in cases} == {True, False, None}
    assert all(case["seconds"] > 0 for case in cases)


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


def end_worker(times, folder, item):
    """Work that ends as many workers as it may before it is done."""
    marks = [folder / str(i) for i in range(times)]
    if item == 1 and (left := [mark for mark in marks if not mark.exists()]):
        left[0].touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return -item


def test_a_worker_that_ends_changes_nothing(address, tmp_path):
    with cluster.each(address) as each:
        told = each(functools.partial(end_worker, LIMIT - 1, tmp_path), range(3), lambda *_: None)
    assert told == [0, -1, -2]
    assert len([*tmp_path.iterdir()]) == LIMIT - 1


def test_work_that_ends_every_worker_is_an_error(address, tmp_path):
    with (
        pytest.raises(RuntimeError, match=rf"{address}: workers end while they do the same piece of work: "),
        cluster.each(address) as each,
    ):
        each(functools.partial(end_worker, LIMIT, tmp_path), range(3), lambda *_: None)


def fail_at(number, item):
    if item == number:
        raise ValueError(f"{item} is unlucky")


def test_an_error_of_a_worker_is_an_error_here(address):
    with pytest.raises(ValueError, match="^13 is unlucky$"), cluster.each(address) as each:
        each(functools.partial(fail_at, 13), range(12, 15), lambda *_: None)


def test_a_worker_with_another_refloss_is_an_error(address, monkeypatch):
    version = refloss.__version__
    monkeypatch.setattr(refloss, "__version__", "0.0.7")
    with pytest.raises(RuntimeError, match=f"^a worker has refloss {version}; expected 0.0.7$"):
        with cluster.each(address) as each:
            each(abs, [1], lambda *_: None)


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
import sys
sys.modules["dask"] = sys.modules["distributed"] = None
from refloss.cli import main
main()
"""


def ones(folder):
    """Options of a loss of two arrays."""
    np.save(folder / "x.npy", np.ones(3))
    return ["--input", folder / "x.npy", "--target", folder / "x.npy"]


@pytest.mark.parametrize("command", ["compare", "compute"])
def test_without_a_scheduler_nobody_needs_dask(run, folders, tmp_path, command):
    arguments = {"compare": [*folders, "--cases", "mse-sum"], "compute": ["mse", *ones(tmp_path)]}[command]
    program = [sys.executable, "-c", WITHOUT, command, *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == run(command, *arguments)
