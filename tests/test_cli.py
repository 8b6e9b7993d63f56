"""The command line, run as a user runs it."""

import json
import math
import os
import re
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numba
import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file

import refloss
from refloss import cli
from refloss.commands import compute, golden
from refloss.files import nested
from refloss.golden import corpus
from refloss.registry import FUNCTIONS


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


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    logits = (generator.standard_normal((3, 8, 21)) * 4).astype(np.float32)
    labels = generator.integers(21, size=(3, 8))
    labels[1, 4:] = -100
    return logits, labels


def test_compute_prints_loss_tokens_and_perplexity(run, data, tmp_path):
    logits, labels = data
    np.save(tmp_path / "x.npy", logits)
    np.save(tmp_path / "y.npy", labels)
    status, out, err = run("compute", "causal_lm", "--logits", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    result = refloss.causal_lm(logits, labels)
    counted = np.count_nonzero(labels[:, 1:] != -100)
    assert (status, err) == (0, "")
    loss, tokens, perplexity = (line.split() for line in out.splitlines())
    assert loss == ["loss", repr(float(result.loss))]
    assert tokens == ["tokens", str(counted)]
    assert perplexity[0] == "perplexity"
    assert math.isclose(float(perplexity[1]), math.exp(result.loss), rel_tol=1e-12)


def files_of(folder, dtype, logits, labels):
    """The same tensors in every kind of file."""
    logits = logits.astype(dtype)
    np.save(folder / "x.npy", logits)
    np.save(folder / "y.npy", labels)
    yield folder / "x.npy", folder / "y.npy"
    np.savez(folder / "both.npz", logits=logits, labels=labels)
    yield folder / "both.npz", folder / "both.npz"
    np.savez_compressed(folder / "small.npz", logits=logits, labels=labels)
    yield folder / "small.npz", folder / "small.npz"
    save_file(
        {"input.logits": logits, "input.labels": labels, "expected.loss": np.zeros(())}, folder / "golden.safetensors"
    )
    yield folder / "golden.safetensors", folder / "golden.safetensors"
    save_file({"anything": np.ascontiguousarray(logits)}, folder / "x.safetensors")
    yield folder / "x.safetensors", folder / "y.npy"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_compute_reads_every_file_format(run, data, tmp_path, dtype):
    logits, labels = data
    expected = refloss.masked_lm(logits.astype(dtype), labels, grad_output=-2.0)
    for x, y in files_of(tmp_path, dtype, logits, labels):
        out = tmp_path / "result.safetensors"
        status, _, err = run(
            "compute", "masked_lm", "--logits", x, "--labels", y, "--grad-output", "-2.0", "--out", out
        )
        assert (status, err) == (0, "")
        result = load_file(out)
        assert result["loss"] == expected.loss
        assert result["grad.logits"].dtype == dtype
        assert result["grad.logits"].tobytes() == expected.grads["logits"].tobytes()
        assert set(result) == {"loss", "grad.logits", "intermediate.lse", "intermediate.nll"}
        out.unlink()


def test_compute_passes_every_option_on(run, data, tmp_path):
    logits, labels = data
    save_file({"logits": logits.reshape(24, 21), "labels": labels}, tmp_path / "in.safetensors")
    out = tmp_path / "result.safetensors"
    options = ["--vocab-size", 21, "--num-items-in-batch", 100, "--ignore-index", 3, "--grad-dtype", "bfloat16"]
    labels[1, 4:] = 3
    np.save(tmp_path / "y.npy", labels)
    files = [
        "--logits",
        tmp_path / "in.safetensors",
        "--labels",
        tmp_path / "y.npy",
        "--shift-labels",
        tmp_path / "y.npy",
    ]
    status, _, err = run("compute", "causal_lm", *files, *options, "--out", out)
    assert (status, err) == (0, "")
    expected = refloss.causal_lm(logits, None, 21, 100, 3, labels, grad_dtype="bfloat16")
    result = load_file(out)
    assert result["loss"] == expected.loss
    assert result["grad.logits"].dtype == ml_dtypes.bfloat16
    assert result["grad.logits"].tobytes() == expected.grads["logits"].tobytes()


def test_compute_cross_entropy_of_arrays(run, tmp_path):
    generator = np.random.default_rng(1)
    x, t, w = generator.standard_normal((4, 5)), generator.dirichlet(np.ones(5), 4), generator.random(5)
    np.savez(tmp_path / "in.npz", logits=x, target=t, weight=w)
    path, out = tmp_path / "in.npz", tmp_path / "out.safetensors"
    files = ["--logits", path, "--target", path, "--weight", path]
    status, text, _ = run(
        "compute", "cross_entropy", *files, "--reduction", "none", "--label-smoothing", "0.1", "--out", out
    )
    expected = refloss.cross_entropy(x, t, w, reduction="none", label_smoothing=0.1)
    assert status == 0
    assert text.startswith("loss        4 values, mean ")
    result = load_file(out)
    assert np.array_equal(result["loss"], expected.loss)
    assert np.array_equal(result["grad.target"], expected.grads["target"])


def test_inputs_are_mapped_not_read(data, tmp_path):
    from refloss.files import load_tensors

    logits, labels = data
    for x, _ in files_of(tmp_path, np.float32, logits, labels):
        array = next(iter(load_tensors(x).values()))
        base = array
        while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap) == (x.name != "small.npz"), x.name


BAD = [
    (["compute", "causal_lm"], "Missing option '--logits'"),
    (["compute", "causal_lm", "--logits", "x.npy"], "Missing option '--labels'"),
    (["compute", "tea", "--logits", "x.npy"], "No such command 'tea'"),
    (["compute", "causal_lm", "--logits", "x.npy", "--labels", "y.npy", "--sugar", "2"], "No such option: --sugar"),
    (
        ["compute", "causal_lm", "--logits", "x.npy", "--labels", "y.npy", "--ignore-index", "two"],
        "Invalid value for '--ignore-index'",
    ),
    (["compute", "causal_lm", "--logits", "no.npy", "--labels", "y.npy"], "no.npy: no such file"),
    (["compute", "causal_lm", "--logits", "x.txt", "--labels", "y.npy"], "x.txt: expected a file ending in .npy, .npz"),
    (["compute", "causal_lm", "--logits", "broken.npy", "--labels", "y.npy"], "broken.npy: not a readable .npy file"),
    (["compute", "causal_lm", "--logits", "broken.npz", "--labels", "y.npy"], "broken.npz: not a readable .npz file"),
    (
        ["compute", "causal_lm", "--logits", "broken.safetensors", "--labels", "y.npy"],
        "not a readable .safetensors file",
    ),
    (["compute", "causal_lm", "--logits", "short.npy", "--labels", "y.npy"], "short.npy: not a readable .npy file"),
    (["compute", "causal_lm", "--logits", "objects.npy", "--labels", "y.npy"], "objects.npy: not a readable .npy file"),
    (
        ["compute", "causal_lm", "--logits", "two.npz", "--labels", "y.npy"],
        "two.npz: has no tensor 'logits' among a, b",
    ),
    (["compute", "causal_lm", "--logits", "y.npy", "--labels", "y.npy"], "logits has dtype int64"),
    (["compute", "causal_lm", "--logits", "x.npy", "--labels", "big.npy"], "labels[0, 1] = 99 is outside [0, 4)"),
    (
        ["compute", "causal_lm", "--logits", "x.npy", "--labels", "y.npy", "--out", "a.txt"],
        "expected a file ending in .safe",
    ),
    (
        ["compute", "causal_lm", "--logits", "x.npy", "--labels", "y.npy", "--out", "no/a.safetensors"],
        "no such folder: no",
    ),
    (
        [
            "compute",
            "causal_lm",
            "--logits",
            "x.npy",
            "--labels",
            "y.npy",
            "--grad-dtype",
            "int8",
            "--out",
            "a.safetensors",
        ],
        "grad_dtype is int8",
    ),
    (
        ["compute", "cross_entropy", "--logits", "x.npy", "--target", "y.npy", "--reduction", "tea"],
        "reduction is 'tea'",
    ),
    (["golden", "check", "no"], "no: no golden files here"),
    (
        ["compute", "causal_lm", "--logits", "x.npy", "--labels", "y.npy", "--ignore-index", "9" * 20],
        "ignore_index is 999",
    ),
    (["compute", "causal_lm", "--logits", "objects.npz", "--labels", "y.npy"], "objects.npz: not a readable .npz file"),
    (
        ["compute", "causal_lm", "--logits", "in.safetensors", "--labels", "y.npy", "--out", "in.safetensors"],
        "is an input too",
    ),
    (["compute", "causal_lm", "--logits", ".", "--labels", "y.npy"], ".: not a file"),
    (["golden", "write", "made", "--only", "tea"], "unknown function tea; there are mse, l1"),
    (
        ["golden", "write", "made", "--only", "maskedlm"],
        "unknown function maskedlm (did you mean 'masked_lm'?); there are",
    ),
    (["golden", "write", "made", "--dtypes", "float23"], "unknown dtype float23 (did you mean 'float32'?); there are"),
    (
        ["golden", "write", "made", "--only", "mse", "--cases", "mse"],
        "no case is called mse (did you mean 'mse-*'?); there",
    ),
    (
        ["golden", "write", "made", "--cases", "mse-sun"],
        "no case is called mse-sun (did you mean 'mse-sum'?); there are",
    ),
    (
        ["golden", "write", "made", "--cases", "20", "--count", "3", "--seed", "1"],
        "--cases: 20 is how many fresh cases are drawn, and so is --count 3",
    ),
    (["golden", "write", "made", "--cases", "20"], "--cases: 20 is how many fresh cases are drawn; give their --seed"),
    (["golden", "write", "made", "--count", "3"], "--count: of fresh cases; give their --seed"),
    (
        ["golden", "write", "made", "--cases", "causal_lm-items", "--dtypes", "float64"],
        "no case is called causal_lm-items",
    ),
    (["golden", "write", "made", "--only", ""], "--only names nothing; leave it out for all"),
    (["golden", "write", "made", "--cases", " , "], "--cases names nothing; leave it out for all"),
    (["golden", "write", "made", "--dtypes", ""], "--dtypes names nothing; leave it out for all"),
    (["golden", "write", "made", "--bounds", ""], "--bounds names nothing; leave it out for all"),
    (["compare", ".", ".", "--functions", ""], "--functions names nothing; leave it out for all"),
    (["compare", ".", ".", "--cases", ""], "--cases names nothing; leave it out for all"),
    (["check", "x:y", "--function", ""], "--function names nothing; leave it out for all"),
    (["check", "x:y", "--function", "mse", "--cases", ""], "--cases names nothing; leave it out for all"),
    (["check", "x:y", "--function", "mse", "--dtypes", ","], "--dtypes names nothing; leave it out for all"),
    (["compute", "cross_entrpy", "x.npy"], "No such command 'cross_entrpy'. Did you mean 'cross_entropy'"),
    (["compute", "mse", "x.npy", "--reductoin", "sum"], "No such option: --reductoin (Possible options: --reduction)"),
    (["-q"], "Missing command; refloss -h lists them"),
    (["golden", "write", "x.npy"], "x.npy"),
    (["tea"], "No such command 'tea'"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_files_names_and_options(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((1, 2, 4), np.float32))
    np.save("y.npy", np.zeros((1, 2), np.int64))
    np.save("big.npy", np.full((1, 2), 99))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    np.savez("objects.npz", logits=np.array([{}], object))
    save_file({"logits": np.zeros((1, 2, 4), np.float32)}, "in.safetensors")
    np.savez("two.npz", a=np.zeros(1), b=np.zeros(2))
    (tmp_path / "x.txt").write_text("0.5")
    for name in ("broken.npy", "broken.npz", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not tensors")
    (tmp_path / "short.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(*arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert len(err.splitlines()) == 1
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert left == []


def npy_with(header, data=b""):
    """A .npy file with a header of one's own."""
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + data


UNREADABLE = {
    "short.npz": "8 bytes of data; float64 of shape (4,) takes 32",
    "torn.npy": "TokenError: ",
    "lzma.npz": "LZMAError: ",
    "nested.safetensors": "SafetensorError: ",
    "\x1b[2J.npy": "no such file",
}


@pytest.mark.parametrize(("name", "message"), UNREADABLE.items())
def test_a_file_that_cannot_be_read_is_one_line(run, tmp_path, name, message):
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("logits.npy", npy_with("{'descr': '<f8', 'fortran_order': False, 'shape': (4,)}\n", bytes(8)))
        archive.writestr("labels.npy", bytes(4096))
    (tmp_path / "torn.npy").write_bytes(npy_with("{'descr': ("))
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("logits.npy", b"logits")
    path = tmp_path / "lzma.npz"
    path.write_bytes(path.read_bytes().replace(b"\x5d\0\0", b"\xff\0\0"))
    (tmp_path / "nested.safetensors").write_bytes(struct.pack("<Q", 90000) + b'{"a":' * 18000)
    status, out, err = run("compute", "mse", "--input", tmp_path / name, "--target", tmp_path / name)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"refloss: {tmp_path}")
    assert message in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EOFError(), "EOFError"),
        (ValueError(), "ValueError"),
        (RuntimeError("first\nsecond \x1b[31m"), "first\\nsecond \\x1b[31m"),
        (OverflowError("too large"), "too large"),
        (ZeroDivisionError("division by zero"), "division by zero"),
        (RecursionError("too deep"), "too deep"),
        (NotImplementedError(), "NotImplementedError"),
        (MemoryError(), "not enough memory"),
        (MemoryError("no room for 5 bytes"), "not enough memory: no room for 5 bytes"),
    ],
    ids=repr,
)
def test_every_error_is_told_in_one_line(run, monkeypatch, error, line):
    def broken(**_):
        raise error

    monkeypatch.setattr(cli, "app", broken)
    assert run() == (2, "", f"refloss: {line}\n")


def test_a_fault_of_ours_is_a_traceback(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda **_: [].nothing)
    with pytest.raises(AttributeError):
        cli.main()


@pytest.mark.parametrize("mean", [800.0, 11357.0, 1e300, math.inf])
def test_a_perplexity_that_no_number_holds(run, tmp_path, mean):
    np.save(tmp_path / "x.npy", np.array([[[0.0, -mean]]]))
    np.save(tmp_path / "y.npy", np.array([[1]]))
    status, out, err = run("compute", "masked_lm", "--logits", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].split() == ["perplexity", "inf"]


@pytest.mark.parametrize("values", [[], [1e308, -1e308, 1e308], [np.inf, np.nan]], ids=str)
def test_means_that_are_no_numbers(run, tmp_path, values):
    np.save(tmp_path / "x.npy", np.array(values, np.float64))
    np.save(tmp_path / "y.npy", np.zeros(len(values)))
    files = ["--input", tmp_path / "x.npy", "--target", tmp_path / "y.npy"]
    status, out, err = run("compute", "l1", *files, "--reduction", "none")
    assert (status, err) == (0, "")
    assert out.endswith(f" mean {'inf' if values[:1] == [1e308] else 'nan'}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="shells of its own")
@pytest.mark.parametrize(
    ("command", "status", "err"),
    [
        ("{refloss} list | true", 141, ""),
        ("{refloss} --help | true", 141, ""),
        ("{refloss} golden check . | true", 141, ""),
        ("{refloss} golden check no 2>&1 | true", 2, ""),
        ("{refloss} list > /dev/full", 2, "refloss: [Errno 28] No space left on device\n"),
        ("{refloss} --version > /dev/full", 2, "refloss: [Errno 28] No space left on device\n"),
        ("{refloss} list >&-", 0, ""),
        ("{refloss} golden check no 2>&-", 2, ""),
    ],
)
def test_output_that_nobody_reads(tmp_path, command, status, err):
    # More cases than a pipe's buffer holds, none of which has a file.
    cases = [{"id": f"{i}", "file": f"{i:099}", "sha256": "", "function": "mse", "parameters": {}} for i in range(1000)]
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "cases": cases}))
    # The reader has gone long before Python has started.
    shell = "set -o pipefail; " + command.format(refloss='"$0" -m refloss')
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.run(
        ["bash", "-c", shell, sys.executable], cwd=tmp_path, env=buffered, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (status, err)


def test_a_failed_write_leaves_nothing_behind(run, data, tmp_path, monkeypatch):
    logits, labels = data
    np.savez(tmp_path / "in.npz", logits=logits, labels=labels)
    (tmp_path / "out.safetensors").write_bytes(b"earlier")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("refloss.files.save_file", full)
    path = tmp_path / "in.npz"
    status, _, err = run(
        "compute", "causal_lm", "--logits", path, "--labels", path, "--out", tmp_path / "out.safetensors"
    )
    assert status == 2
    assert "No space left on device" in err
    assert (tmp_path / "out.safetensors").read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.safetensors"]


def test_golden_write_and_check(run, tmp_path):
    status, out, _ = run("golden", "write", tmp_path / "g", "--only", "causal_lm,masked_lm")
    assert status == 0
    assert "cases written" in out
    manifest = json.loads((tmp_path / "g" / "manifest.json").read_text())
    assert {entry["function"] for entry in manifest["cases"]} == {"causal_lm", "masked_lm"}
    status, out, _ = run("golden", "check", tmp_path / "g")
    count = len(manifest["cases"])
    assert (status, out) == (0, f"{count} of {count} cases have the same bits\n")
    (tmp_path / "g" / "masked_lm-float32.safetensors").write_bytes(b"")
    status, out, _ = run("golden", "check", tmp_path / "g")
    assert status == 1
    assert out.startswith("masked_lm-float32: ")
    assert out.endswith(f"{count - 1} of {count} cases have the same bits\n")


def test_what_a_manifest_says_cannot_command_a_terminal(run, tmp_path):
    folder = tmp_path / "g"
    run("golden", "write", folder, "--only", "masked_lm")
    manifest = json.loads((folder / "manifest.json").read_text())
    first, second, third = manifest["cases"][:3]
    first["id"], first["file"] = "\x1b[2J", "\x1b]0;title\x07"
    second["id"], second["function"] = "\x9b31m\n100 of 100 cases have the same bits", "\x1b[31m"
    third["parameters"] = {"\x1b[1m": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    status, out, err = run("golden", "check", folder)
    assert (status, err, len(out.splitlines())) == (1, "", 4)
    assert out.startswith("\\x1b[2J: \\x1b]0;title\\x07: no such file\n\\x9b31m\\n100 of ")
    (tmp_path / "candidate").mkdir()
    for entry in manifest["cases"]:
        save_file({"\x1b[31mred": np.zeros(1)}, tmp_path / "candidate" / entry["file"])
    (tmp_path / "candidate" / "\x1b[0m").write_bytes(b"")
    report = ["--junit", tmp_path / "x.xml", "--html", tmp_path / "x.html"]
    for options in ([], ["--json"], report):
        status, out, err = run("compare", folder, tmp_path / "candidate", *options)
        assert status == 1
        assert err == "refloss: \\x1b[0m: no case has this file\n"
        assert not {"\x1b", "\x9b", "\x07"} & set(out)
    for path in report[1::2]:
        assert not {"\x1b", "\x9b", "\x07"} & set(path.read_text())
    manifest["format"] = "\x1b[31m\n"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for command in (["golden", "check", folder], ["compare", folder, tmp_path / "candidate"]):
        status, out, err = run(*command)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert "\x1b" not in err


@pytest.mark.parametrize("columns", [None, 60, 80, 120, 300])
def test_list_names_every_function_and_key(run, monkeypatch, columns):
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = run("list")
    assert status == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= (columns or 240)
    assert ("gradients: input, target, weight" in out) == (columns in (60, 80, 120))
    words = set(" ".join(lines).replace(",", " ").split())
    assert words >= {*refloss.LOSS_MAPPING, *FUNCTIONS}
    for function in FUNCTIONS.values():
        assert set(function.summary.split()) <= set(out.split())


GROUPS = [["golden", "add"], ["golden"], ["compute"], []]
COMMANDS = [["list"], ["warm"], ["compare"], ["check"], ["golden", "write"], ["golden", "check"]]


@pytest.fixture(scope="module")
def command():
    """All commands, made once."""
    compute.offer_functions()
    golden.offer_functions()
    return typer.main.get_command(cli.app)


@pytest.fixture
def help_of(command, capsys):
    def call(*words):
        command.main(list(words), prog_name="refloss", standalone_mode=False)
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_is_whole(help_of, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    of_functions = [words for name in FUNCTIONS for words in (["compute", name], ["golden", "add", "folder", name])]
    for words in (*GROUPS, *COMMANDS, *of_functions):
        out = help_of(*words, "--help")
        assert out.startswith("Usage: refloss"), words
        # The longest names take more than a line with what stands before them.
        usage, *lines = out.splitlines()
        assert words[1:2] == ["add"] or len(usage) <= columns, words
        assert max(len(line.rstrip()) for line in lines) <= min(columns, 80), words
        # What has been cut off ends so; axes of arrays and arguments do as well.
        assert not re.search(r"(?<!, )\.\.\.(?!\]|,| ?\])", out.replace("[ARGS]...", "").replace("[..., ", "")), words
        assert {"-h, --help", "-v, --verbose", "-q, --quiet"} <= set(re.findall(r"-., --\w+", out)), words
        assert help_of(*words, "-h") == out, words
    for words in (["compute"], ["golden", "add"]):
        told = "".join(help_of(*words, "-h").split())
        for function in FUNCTIONS.values():
            assert f"{function.name} {function.summary}".replace(" ", "") in told


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_a_group_without_a_command_tells_its_help(run, words):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err == run(*words, "--help")[1]


def test_help_tells_shapes_words_and_defaults(run):
    told = " ".join(run("compute", "cross_entropy", "--help")[1].split())
    for text in (
        "--logits <path> File of logits, [N, C, ...] or [C].",
        "--reduction <str> The function's reduction: mean, sum, none; mean if not given.",
        "--ignore-index <int> The function's ignore_index; -100 if not given.",
        "--grad-output <str> The upstream gradient, which all gradients are multiplied with:",
    ):
        assert text in told


def test_compute_prints_json_that_every_parser_reads(run, data, tmp_path):
    logits, labels = data
    np.savez(tmp_path / "in.npz", logits=logits, labels=labels)
    status, out, err = run("compute", "causal_lm", tmp_path / "in.npz", "--z-loss", "0.1", "--json")
    result = refloss.causal_lm(logits, labels, z_loss=0.1)
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert math.isclose(told.pop("perplexity"), np.exp(np.sum(result.intermediates["nll"]) / told["tokens"]))
    assert told == {
        "refloss": refloss.__version__,
        "function": "causal_lm",
        "loss": result.loss,
        "components": {name: float(value) for name, value in result.components.items()},
        "shapes": {"logits": "float32 [3, 8, 21]", "labels": "int64 [3, 8]"},
        "tokens": np.count_nonzero(labels[:, 1:] != -100),
    }
    assert told["components"]
    np.savez(tmp_path / "x.npz", input=np.array([1.0, np.inf, np.nan]), target=np.zeros(3))
    told = strictly(run("compute", "l1", tmp_path / "x.npz", "--reduction", "none", "--json")[1])
    assert told["loss"] == [1.0, "inf", "nan"]
    assert strictly(run("compute", "l1", tmp_path / "x.npz", "--json")[1])["loss"] == "nan"
    scene, config, expected = scene_of(tmp_path, "object_detection", "layers")
    told = strictly(run("compute", "object_detection", scene, "--config", config, "--json")[1])
    assert told["components"] == {name: float(value) for name, value in expected.components.items()}
    assert told["shapes"]["labels.0.boxes"].startswith("float32 [")


def strictly(text):
    """JSON without the numbers that only Python reads."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_quiet_leaves_errors_json_and_the_exit_status(run, data, tmp_path):
    logits, labels = data
    np.savez(tmp_path / "in.npz", logits=logits, labels=labels)
    golden, candidate = tmp_path / "golden", tmp_path / "candidate"
    for words in (
        ["golden", "write", golden, "--cases", "mse-sum,mse-hit"],
        ["golden", "check", golden],
        ["compute", "causal_lm", tmp_path / "in.npz"],
        ["golden", "add", golden, "causal_lm", tmp_path / "in.npz"],
        ["list"],
    ):
        for quietly in (["-q", *words], [*words, "--quiet"]):
            if words[:2] != ["golden", "add"] or quietly[0] == "-q":
                assert run(*quietly) == (0, "", ""), quietly
    candidate.mkdir()
    (candidate / "what.txt").write_text("")
    save_file({"loss": np.zeros(())}, candidate / "mse-sum.safetensors")
    assert run("compare", golden, candidate, "-q") == (1, "", "")
    status, out, err = run("compare", golden, candidate, "-q", "--json")
    assert (status, err, json.loads(out)["passed"]) == (1, "", False)
    (golden / "mse-sum.safetensors").write_bytes(b"")
    assert run("golden", "check", golden, "-q") == (1, "", "")
    assert run("golden", "check", tmp_path / "no", "-q")[::2] == (
        2,
        f"refloss: {tmp_path / 'no'}: no golden files here: there is no manifest.json\n",
    )
    assert run("list")[1] != ""


def test_verbose_tells_what_is_done(run, tmp_path):
    np.savez(tmp_path / "x.npz", input=np.zeros(3), target=np.ones(3))
    out = tmp_path / "out.safetensors"
    plain = run("compute", "l1", tmp_path / "x.npz", "--out", out)
    for words in (["-v", "compute", "l1"], ["compute", "-v", "l1"], ["compute", "l1", "--verbose"]):
        status, printed, err = run(*words, tmp_path / "x.npz", "--out", out)
        assert (status, printed) == plain[:2]
        first, *_, last, end = err.splitlines()
        assert (first, last) == (f"refloss: read {tmp_path / 'x.npz'}", f"refloss: wrote {out}")
        assert re.fullmatch(r"refloss: \d+\.\d\d seconds in all", end)
    status, printed, err = run("-v", "compute", "l1", tmp_path / "x.npz", "--reduction", "tea")
    assert (status, printed) == (2, "")
    assert "Traceback (most recent call last)" in err
    assert "refloss: reduction is 'tea'; expected one of" in err
    assert run("compute", "l1", tmp_path / "x.npz", "--out", out) == plain
    assert run("list", "-v", "-q")[2].splitlines()[-2] == "refloss: -v and -q: give one of them"
    # A file's name cannot command a terminal.
    np.savez(tmp_path / "\x1b[2J.npz", input=np.zeros(3), target=np.ones(3))
    assert "\x1b" not in run("compute", "l1", tmp_path / "\x1b[2J.npz", "-v")[2]


def test_verbose_tells_what_is_compiled(run, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", input=np.zeros(3), target=np.ones(3))

    @numba.njit
    def called(x):
        return x + 1

    def compiling(facts):
        numba.njit(lambda x: called(x) + 1)(1.0)
        return facts

    monkeypatch.setattr("refloss.commands.compute.plain", compiling)
    err = run("compute", "l1", tmp_path / "x.npz", "-v", "--json")[2]
    # What it calls is a part of it.
    (line,) = [line for line in err.splitlines() if "compiled tests." in line]
    assert re.fullmatch(r"refloss: compiled tests\.test_cli\.<lambda> in \d+\.\d\d seconds", line)
    assert "compiled" not in run("compute", "l1", tmp_path / "x.npz", "--json")[2]


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("refloss compute masked", {"masked_lm"}),
        ("refloss golden add folder masked", {"masked_lm"}),
        ("refloss golden write d --only l1,ms", {"l1,mse"}),
        ("refloss golden write d --only mse --cases mse-su", {"mse-sum", "mse-sum-large-cotangent"}),
        ("refloss golden write d --dtypes float16,bf", {"float16,bfloat16"}),
        ("refloss check k.py:fn --function mse,l1 --cases mse-hit,l1-hi", {"mse-hit,l1-hit"}),
        ("refloss check k.py:fn --framework j", {"jax"}),
        ("refloss compare golden candidate --cases mi", {"mine"}),
        ("refloss compare golden candidate --compute-dtype t", {"tf32"}),
        ("refloss compare golden candidate --functions masked", {"masked_lm"}),
        ("refloss compute mse --reduction s", {"sum"}),
        ("refloss compute mse --redu", {"--reduction"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_names(run, tmp_path, monkeypatch, shell, line, completed):
    (tmp_path / "golden").mkdir()
    entry = {"id": "mine", "file": "mine.safetensors", "sha256": "", "function": "mse", "parameters": {}}
    (tmp_path / "golden" / "manifest.json").write_text(json.dumps({"format": 1, "cases": [entry]}))
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "_REFLOSS_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }.items():
        monkeypatch.setenv(name, value)
    status, out, err = run()
    assert (status, err) == (0, "")
    words = re.findall(r'^(?:_arguments.*\(\()?"?([\w,<>.-]+)', out, re.MULTILINE)
    assert set(words) == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_a_shell(run, monkeypatch, shell):
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    status, out, err = run("--show-completion")
    assert (status, err) == (0, "")
    assert f"_REFLOSS_COMPLETE=complete_{shell}" in out


def test_the_module_is_the_command():
    run = subprocess.run([sys.executable, "-m", "refloss", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"refloss {refloss.__version__}\n"


def test_a_file_larger_than_the_memory_allowed(tmp_path):
    """Logits of 512 MiB and a gradient as large, with room for 460 MiB of memory that is not mapped from files."""
    pytest.importorskip("resource")
    shape = (4096, 32768)
    logits = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    logits[:] = np.linspace(-3, 3, shape[1], dtype=np.float32)
    logits.flush()
    labels = np.arange(shape[0])
    np.save(tmp_path / "y.npy", labels)
    refloss.masked_lm(logits[:1], labels[:1])  # so that the process with little memory need not compile
    program = "import resource, sys\nfrom refloss.cli import main\n" + (
        "resource.setrlimit(resource.RLIMIT_DATA, (460 * 2**20, 460 * 2**20))\nmain()"
    )

    def refloss_with_little_memory(*arguments):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout

    arguments = ["--logits", tmp_path / "x.npy", "--labels", tmp_path / "y.npy"]
    out = tmp_path / "r.safetensors"
    printed = refloss_with_little_memory("compute", "masked_lm", *arguments, "--out", out)
    expected = refloss.masked_lm(logits, labels, grad=False)
    assert printed.splitlines()[0].split()[1] == repr(float(expected.loss))
    rows = refloss.masked_lm(logits[:4], labels[:4], num_items_in_batch=shape[0])
    from refloss.files import load_tensors

    gradient = load_tensors(out)["grad.logits"]
    assert gradient.shape == shape
    assert gradient[:4].tobytes() == rows.grads["logits"].tobytes()
    out.unlink()
    refloss_with_little_memory("golden", "add", tmp_path / "g", "masked_lm", *arguments)
    tensors = load_tensors(tmp_path / "g" / "masked_lm.safetensors")
    assert tensors["input.logits"].shape == tensors["expected.grad.logits"].shape == shape
    assert tensors["expected.grad.logits"][:4].tobytes() == rows.grads["logits"].tobytes()
    assert refloss_with_little_memory("golden", "check", tmp_path / "g") == "1 of 1 cases have the same bits\n"


def scene_of(tmp_path, head, name):
    """A file with everything that a head looks at, and its configuration."""
    case = next(case for case in corpus.corpus({head}) if case.id == f"{head}-{name}")
    save_file(dict(case.inputs), tmp_path / "scene.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case.parameters["config"]))
    expected = getattr(refloss, head)(**nested(case.inputs), **case.parameters, grad_output=-0.5)
    return tmp_path / "scene.safetensors", tmp_path / "config.json", expected


@pytest.fixture
def scene(tmp_path):
    return scene_of(tmp_path, "object_detection", "layers")


def test_compute_takes_a_list_of_layers_or_of_shards(run, tmp_path):
    layers = list(np.random.default_rng(3).standard_normal((2, 5, 4)))
    chosen = [np.argsort(layer, axis=-1)[:, :2].copy() for layer in layers]
    mask = np.array([True, True, False, True, True])
    tensors = {f"router_logits.{i}": layer for i, layer in enumerate(layers)} | {"mask": mask}
    save_file(tensors | {f"selected.{i}": experts for i, experts in enumerate(chosen)}, tmp_path / "x.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("compute", "moe_load_balancing", tmp_path / "x.safetensors", "--top-k", "2", "--out", out)[0] == 0
    expected = refloss.moe_load_balancing(layers, 2, mask=mask, selected=chosen)
    assert load_file(out)["grad.router_logits"].tobytes() == expected.grads["router_logits"].tobytes()
    status, printed, _ = run("compute", "router_z_loss", "--router-logits", tmp_path / "x.safetensors")
    assert (status, printed.split()[1]) == (0, repr(float(refloss.router_z_loss(layers).loss)))
    added = ("compute", "moe_load_balancing", tmp_path / "x.safetensors", "--top-k", "2", "--golden", tmp_path / "g")
    assert run(*added)[0] == 0
    assert run("golden", "check", tmp_path / "g")[:2] == (0, "1 of 1 cases have the same bits\n")
    shards = {"shards.0": layers[0], "shards.1": layers[1][:, :3].copy()}
    save_file(shards | {"target": np.arange(5)}, tmp_path / "shards.safetensors")
    status, printed, _ = run("compute", "vocab_parallel_cross_entropy", tmp_path / "shards.safetensors")
    whole = np.concatenate([*shards.values()], axis=-1)
    expected = refloss.cross_entropy(whole, np.arange(5))
    assert (status, printed.split()[1]) == (0, repr(float(expected.loss)))
    given = "vocab_parallel_cross_entropy", tmp_path / "shards.safetensors"
    assert run("compute", *given, "--out", out)[0] == 0
    gradients = load_file(out)
    joined = np.concatenate([gradients["grad.shards.0"], gradients["grad.shards.1"]], axis=-1)
    assert joined.tobytes() == expected.grads["logits"].tobytes()
    assert run("compute", *given, "--golden", tmp_path / "h")[0] == 0
    assert run("golden", "check", tmp_path / "h")[:2] == (0, "1 of 1 cases have the same bits\n")


@pytest.mark.parametrize(
    ("head", "case"), [("object_detection", "layers"), ("deimv2_object_detection", "float32")], ids=["detr", "deimv2"]
)
def test_compute_reads_all_arrays_from_one_file(run, tmp_path, head, case):
    file, config, expected = scene_of(tmp_path, head, case)
    out = tmp_path / "out.safetensors"
    status, printed, err = run("compute", head, file, "--config", config, "--grad-output", "-0.5", "--out", out)
    assert (status, err) == (0, "")
    lines = dict(line.split() for line in printed.splitlines())
    assert lines.pop("loss") == repr(float(expected.loss))
    assert lines == {name: repr(float(value)) for name, value in expected.components.items()}
    tensors = load_file(out)
    for name, gradient in expected.grads.items():
        assert tensors[f"grad.{name}"].tobytes() == gradient.tobytes()
    for name, value in expected.components.items():
        assert tensors[f"component.{name}"] == value
    text = config.read_text()
    assert run("compute", head, file, "--config", text)[0] == 0


def test_compute_takes_one_file_for_several_arguments(run, scene):
    file, config, _ = scene
    text = config.read_text()
    separately = ["--logits", file, "--labels", file, "--pred-boxes", file]
    plain = json.dumps(json.loads(text) | {"auxiliary_loss": False})
    assert run("compute", "object_detection", *separately, "--config", plain)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--config'"),
        (["--config", "{"], "--config: not JSON"),
        (["--config", '{"a":' * 100000], "--config: not JSON: "),  # that it is too deep, in the words of each Python
        (["--config", "garbled"], "--config: not JSON: 'utf-8' codec can't decode"),
        (["--config", "[1]"], "No such file"),
        (["--config", "{}"], "config has no 'num_labels'"),
        (["--config", "{}", "--labels", "nothing.npy"], "nothing.npy: no such file"),
    ],
)
def test_compute_of_a_head_says_what_is_wrong(run, scene, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbled").write_bytes(b"\xff\xfe{")
    status, _, err = run("compute", "object_detection", scene[0], *arguments)
    assert (status, len(err.splitlines())) == (2, 1)
    assert message in err


def test_compute_says_what_a_file_lacks(run, scene, tmp_path):
    save_file({"logits": np.ones((1, 2, 6))}, tmp_path / "half.safetensors")
    status, _, err = run("compute", "object_detection", tmp_path / "half.safetensors", "--config", scene[1])
    assert status == 2
    assert "Missing option '--labels'" in err
    assert "half.safetensors has no labels" in err
