"""Folders of candidate files judged on the command line: every fault is named, none is a traceback."""

import functools
import hashlib
import json
import shutil
import struct
import sys
import tracemalloc
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from rich.console import Console

import refloss
from refloss import cli
from refloss.cases.source import Case
from refloss.files import load_tensors, save_tensors
from refloss.golden import store
from refloss.golden.corpus import corpus
from refloss.messages import printable
from refloss.testing import check, report
from refloss.testing.judging import compare, judge
from refloss.testing.report import table
from refloss.testing.report.judgement import Judgement
from refloss.testing.verdict import CaseVerdict, TensorVerdict

SCHEMA = Path(report.__file__).with_name("judgement.schema.json")
CASE = "causal_lm-float32"
FILE = f"{CASE}.safetensors"


WRITTEN = {"cross_entropy", "causal_lm", "mse"}
COUNT = len(corpus(WRITTEN))


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    store.write(folder, WRITTEN)
    return folder


@pytest.fixture(scope="module")
def right(golden, tmp_path_factory):
    """A candidate that has every answer right."""
    folder = tmp_path_factory.mktemp("candidate")
    for path in golden.glob("*.safetensors"):
        save_tensors(folder / path.name, answers(path))
    return folder


def answers(path):
    tensors = load_tensors(path)
    names = [name for name in tensors if name.startswith(("expected.loss", "expected.grad.", "expected.component."))]
    return {name.removeprefix("expected."): np.array(tensors[name]) for name in names}


@pytest.fixture
def candidate(golden, tmp_path):
    """A candidate that answers one case."""
    folder = tmp_path / "candidate"
    folder.mkdir()
    save_tensors(folder / FILE, answers(golden / FILE))
    return folder


@pytest.fixture
def run(capsys, monkeypatch):
    """Call the command line in this process; returns status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["refloss", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call


def change(folder, **tensors):
    """Replace tensors of the one case, named with _ for . in them; None takes one away."""
    path = folder / FILE
    kept = {name: np.array(value) for name, value in load_tensors(path).items()}
    kept |= {name.replace("grad_", "grad."): value for name, value in tensors.items()}
    save_tensors(path, {name: value for name, value in kept.items() if value is not None})


def gradient(folder):
    return np.array(load_tensors(folder / FILE)["grad.logits"])


def test_the_right_answers_pass(run, golden, right):
    status, out, err = run(golden, right)
    count = len(list(golden.glob("*.safetensors")))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert sum(line.startswith("pass  ") for line in lines) == count
    assert "FAIL" not in out
    assert lines[-1] == f"{count} of {count} cases passed"


@pytest.mark.parametrize("compute_dtype", ["float64", "float32", "tf32", "float16", "bfloat16"])
def test_every_compute_dtype(golden, candidate, compute_dtype):
    judgement = compare.judge_folders(golden, candidate, compute_dtype)
    assert judgement.passed
    assert judgement.as_json()["compute_dtype"] == compute_dtype


def test_a_coarser_type_allows_more(golden, candidate):
    change(candidate, grad_logits=gradient(candidate) * np.float32(1.0005))
    assert compare.judge_folders(golden, candidate, None).exit_status == 1
    assert compare.judge_folders(golden, candidate, "float16").exit_status == 0


def nan_at(folder):
    values = gradient(folder)
    values[0, 1, 2] = np.nan
    return values


VALUES = {
    "missing": (lambda _: None, "missing", "does not have it"),
    "shape": (lambda folder: gradient(folder)[:1], "shape", "shape [1, 9, 17] instead of [2, 9, 17]"),
    "transposed": (lambda folder: gradient(folder).swapaxes(0, 1), "shape", "instead of [2, 9, 17]"),
    "a number": (lambda _: np.float32(0.0), "shape", "shape [] instead of"),
    "empty": (lambda _: np.empty((0,), np.float32), "shape", "shape [0] instead of"),
    "float64": (lambda folder: gradient(folder).astype(np.float64), "dtype", "float64 instead of float32"),
    "bfloat16": (lambda folder: gradient(folder).astype(ml_dtypes.bfloat16), "dtype", "bfloat16 instead of"),
    "integers": (lambda folder: gradient(folder).astype(np.int32), "dtype", "int32 instead of float32"),
    "truth": (lambda folder: gradient(folder) > 0, "dtype", "bool instead of float32"),
    "nan": (nan_at, "not finite", "1 of 306 elements, the worst at [0, 1, 2]: nan instead of"),
    "inf": (lambda folder: gradient(folder) / np.float32(0.0), "not finite", "elements, the worst at"),
    "zero": (lambda folder: gradient(folder) * np.float32(0.0), "too far off", "elements, the worst at"),
    "negated": (lambda folder: -gradient(folder), "too far off", "elements, the worst at"),
}


@pytest.mark.parametrize(("values", "fault", "message"), VALUES.values(), ids=VALUES)
def test_what_is_wrong_with_a_tensor_has_a_name(run, golden, candidate, values, fault, message):
    with np.errstate(all="ignore"):
        change(candidate, grad_logits=values(candidate))
    status, out, err = run(golden, candidate, "--json")
    assert (status, err) == (1, "")
    case = next(case for case in json.loads(out)["cases"] if case["id"] == CASE)
    tensor = next(tensor for tensor in case["tensors"] if tensor["name"] == "grad.logits")
    assert (case["passed"], tensor["passed"], tensor["fault"]) == (False, False, fault)
    assert message in tensor["message"]
    status, out, err = run(golden, candidate)
    assert (status, err) == (1, "")
    assert f"FAIL {CASE}\n" in out
    assert out.endswith(f"cannot hold the inputs\n0 of 1 case passed, 1 failed, {COUNT - 1} not answered\n")


def test_a_tensor_that_no_case_has(run, golden, candidate):
    change(candidate, **{"grad_\x1b[31mred": np.zeros(2), "grad_[bold]": np.zeros(2)})
    status, out, _ = run(golden, candidate)
    assert status == 1
    assert "grad.\\x1b[31mred" in out
    assert "grad.[bold]" in out
    assert "\x1b" not in out
    assert "extra: not a tensor of this case, which has loss, grad.logits" in out


def with_unknown_type(path):
    header = json.dumps({"loss": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_broken_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def as_pipe(path):
    import os

    path.unlink()
    os.mkfifo(path)


FILES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(b"\x10\0\0"),
    "text": lambda path: path.write_text("loss = 3"),
    "huge header": lambda path: path.write_bytes(b"\xff" * 64),
    "unknown type": with_unknown_type,
    "folder": as_folder,
    "broken link": as_broken_link,
    "pipe": as_pipe,
}


@pytest.mark.parametrize("spoil", FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_a_case_that_fails(run, golden, candidate, spoil):
    spoil(candidate / FILE)
    status, out, err = run(golden, candidate, "--json")
    assert (status, err) == (1, "")
    case = next(case for case in json.loads(out)["cases"] if case["id"] == CASE)
    assert (case["passed"], [tensor["fault"] for tensor in case["tensors"]]) == (False, ["unreadable"])
    assert case["tensors"][0]["message"].startswith(f"{FILE}: ")
    status, out, err = run(golden, candidate)
    assert (status, err) == (1, "")
    assert f"unreadable: {FILE}: " in out


@pytest.fixture
def copy(golden, tmp_path):
    """Golden files to spoil."""
    shutil.copytree(golden, tmp_path / "golden")
    return tmp_path / "golden"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "differs from its checksum in the manifest"),
        (lambda path: path.unlink(), "no such file"),
        (as_folder, "no such file"),
    ],
    ids=["truncated", "missing", "folder"],
)
def test_a_golden_file_that_is_not_the_one_written_judges_nobody(run, copy, candidate, spoil, message):
    spoil(copy / FILE)
    status, out, err = run(copy, candidate)
    assert (status, err) == (1, "")
    assert f"FAIL {CASE}\n  the golden case is unusable: {FILE}: {message}" in out


def entry_of(copy, **changes):
    """Change the manifest's entry of the one case."""
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    next(entry for entry in manifest["cases"] if entry["id"] == CASE).update(changes)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "changes",
    [
        {"function": "tea"},
        {"parameters": {"sugar": 2}},
        {"parameters": {"ignore_index": "one"}},
        {"parameters": {"num_items_in_batch": [1, 2]}},
        {"grad_output": "much"},
        {"parameters": {"num_items_in_batch": 10**400}},
    ],
    ids=str,
)
def test_a_golden_case_that_makes_no_sense(run, copy, candidate, changes):
    entry_of(copy, **changes)
    status, out, err = run(copy, candidate)
    assert (status, err) == (1, "")
    assert f"FAIL {CASE}\n  the golden case is unusable: " in out


def test_cases_of_one_name_judge_nobody(run, copy, candidate):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"cases": [*manifest["cases"], manifest["cases"][0]]}))
    status, out, err = run(copy, candidate)
    assert (status, out) == (2, "")
    assert err == f"refloss: {copy / 'manifest.json'}: 2 cases have the id {manifest['cases'][0]['id']!r}\n"


def test_json_has_every_case_and_is_json(run, golden, candidate):
    change(candidate, grad_logits=nan_at(candidate))
    _, out, _ = run(golden, candidate, "--json")
    judged = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(judged, schema)
    assert set(schema["required"]) == set(judged)
    for kind, found in (("case", judged["cases"]), ("tensor", [t for c in judged["cases"] for t in c["tensors"]])):
        assert all(set(each) == set(schema["$defs"][kind]["required"]) for each in found)
    facts = ["refloss", "corpus", "command", "seconds", "environment", "diagnoses"]
    assert set(judged) == {"passed", "compute_dtype", "cases", *facts}
    assert judged["refloss"] == judged["environment"]["refloss"] == refloss.__version__
    assert set(judged["environment"]) == {"refloss", "python", "numpy", "numba", "platform"}
    assert judged["corpus"] == compare.corpus_id(store.read_manifest(golden))
    assert judged["command"] == f"refloss compare {golden} {candidate} --json"
    assert judged["diagnoses"] == [
        {"function": "causal_lm", "mistake": None, "cases": [CASE], "failing": 1, "detail": ""}
    ]
    assert judged["seconds"] >= sum(case["seconds"] for case in judged["cases"]) > 0
    assert [case["id"] for case in judged["cases"]] == [entry["id"] for entry in store.read_manifest(golden)["cases"]]
    absent = [case for case in judged["cases"] if case["id"] != CASE]
    assert all(case["passed"] is None and case["tensors"] == [] for case in absent)
    case = next(case for case in judged["cases"] if case["id"] == CASE)
    more = {"parameters", "shapes", "seconds", "causes"}
    assert set(case) == {"id", "function", "passed", "message", "tensors", *more}
    assert case["shapes"] == {"logits": "float32 [2, 9, 17]", "labels": "int64 [2, 9]"}
    assert case["parameters"] == {"grad_output": -0.625}
    tensors = {tensor["name"]: tensor for tensor in case["tensors"]}
    assert list(tensors) == ["loss", "grad.logits"]
    worst = tensors["grad.logits"]["worst"]
    assert (worst["index"], worst["got"], tensors["grad.logits"]["error_over_bound"]) == ([0, 1, 2], "nan", "inf")
    assert (tensors["grad.logits"]["elements"], tensors["grad.logits"]["above_bound"]) == (306, 1)
    assert tensors["loss"]["passed"] is True
    assert tensors["loss"]["ulp"] == tensors["loss"]["error_over_bound"] == 0.0


def test_junit(run, golden, candidate, tmp_path):
    change(candidate, grad_logits=-gradient(candidate), **{"grad_\x00\x1b": np.zeros(1)})
    save_tensors(candidate / "mse-sum.safetensors", answers(golden / "mse-sum.safetensors"))
    path = tmp_path / "junit.xml"
    assert run(golden, candidate, "--junit", path)[0] == 1
    root = ElementTree.parse(path).getroot()
    count = len(list(golden.glob("*.safetensors")))
    totals = {"tests": str(count), "failures": "1", "errors": "0", "skipped": str(count - 2)}
    assert root.tag == "testsuites"
    assert totals.items() <= root.attrib.items()
    suites = root.findall("testsuite")
    assert {suite.get("name") for suite in suites} == {"mse", "cross_entropy", "causal_lm"}
    for suite in suites:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
        assert suite.get("skipped") == str(len(suite.findall("testcase/skipped")))
        assert all(case.get("classname") == suite.get("name") and case.get("time") for case in cases)
        properties = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
        assert properties["refloss"] == refloss.__version__
        assert properties["corpus"] == compare.corpus_id(store.read_manifest(golden))
        assert properties["command"] == f"refloss compare {golden} {candidate} --junit {path}"
        diagnosis = properties.get("diagnosis", "")
        assert ("wrong sign" in diagnosis) == (suite.get("name") == "causal_lm")
        assert not diagnosis or "1 of 1 failing case" in diagnosis
        assert sum(float(case.get("time")) for case in cases) == pytest.approx(float(suite.get("time")), abs=1e-4)
    assert 0 < sum(float(suite.get("time")) for suite in suites) <= float(root.get("time")) + 1e-4
    (failed,) = root.findall("*/testcase[failure]")
    assert failed.get("name") == CASE
    assert failed.find("failure").get("message").startswith("grad.logits: too far off: ")
    assert "grad.\\x00\\x1b: extra" in failed.find("failure").text
    skipped = root.findall("*/testcase[skipped]")
    assert len(skipped) == count - 2
    for case in skipped:
        assert case.find("skipped").get("message") == f"the candidate has no {case.get('name')}.safetensors"


def test_html(run, golden, candidate, tmp_path):
    change(candidate, grad_logits=-gradient(candidate))
    status, out, _ = run(golden, candidate, "--html", tmp_path / "report.html")
    assert status == 1
    assert f"FAIL {CASE}\n" in out
    text = (tmp_path / "report.html").read_text()
    assert f"{candidate} against {golden}" in text
    assert "the worst at [" in text


def test_one_gradient_of_two_can_be_judged_alone(run, golden, tmp_path):
    """A kernel that has the gradient of the prediction, and none of the target."""
    folder = tmp_path / "candidate"
    folder.mkdir()
    for path in golden.glob("mse-*.safetensors"):
        tensors = answers(path)
        del tensors["grad.target"]
        save_tensors(folder / path.name, tensors)
    count = len(list(folder.iterdir()))
    assert run(golden, folder, "--json")[0] == 1
    status, out, _ = run(golden, folder, "--grads", "input", "--json")
    judged = [case for case in json.loads(out)["cases"] if case["passed"] is not None]
    assert (status, len(judged)) == (0, count)
    assert {tensor["name"] for case in judged for tensor in case["tensors"]} == {"loss", "grad.input"}
    assert compare.judge_folders(golden, folder, grads="input").passed
    assert compare.judge_folders(golden, folder, grads=()).passed
    assert not compare.judge_folders(golden, folder, grads=["target", "input"]).passed
    path = folder / "mse-sum.safetensors"
    save_tensors(path, {name: -np.array(value) for name, value in load_tensors(path).items()})
    assert not compare.judge_folders(golden, folder, grads="input").passed
    assert run(golden, folder, "--grads", "input", "--cases", "mse-n*,mse-hit")[0] == 0
    status, out, err = run(golden, folder, "--grads", "inputs")
    assert (status, out) == (2, "")
    assert err == "refloss: unknown grad inputs (did you mean 'input'?); there are input, target, weight\n"


def test_cases_and_functions_can_be_chosen(run, golden, right):
    def ids(*options):
        status, out, err = run(golden, right, "--json", *options)
        assert (status, err) == (0, "")
        return [case["id"] for case in json.loads(out)["cases"]]

    every = ids()
    assert ids("--functions", "mse, causal_lm") == [case for case in every if not case.startswith("cross_entropy")]
    assert ids("--functions", "mse", "--cases", "mse-hit,mse-su?") == ["mse-sum", "mse-hit"]
    assert ids("--cases", "causal_lm-?float16,causal_lm-float16") == ["causal_lm-bfloat16", "causal_lm-float16"]
    for options, message in (
        (["--functions", "mse,l1"], "unknown function l1; there are mse, cross_entropy, causal_lm"),
        (
            ["--cases", "mse-some"],
            "no case is called mse-some (did you mean 'mse-sum'?); there are mse-float32-mean, mse-bfloat16-mean and",
        ),
        (["--functions", "causal_lm", "--cases", "mse-sum"], "no case is called mse-sum; there are causal_lm-float32"),
        (["--components", "loss_ce"], "unknown component loss_ce; there are "),
    ):
        status, out, err = run(golden, right, *options)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert message in err


def test_the_table_says_first_what_is_wrong(run, golden, candidate):
    for name in ("causal_lm-float16", "causal_lm-float64"):
        save_tensors(candidate / f"{name}.safetensors", answers(golden / f"{name}.safetensors"))
    for path in candidate.iterdir():
        values = {name: np.array(value) for name, value in load_tensors(path).items()}
        save_tensors(path, values | {"grad.logits": -values["grad.logits"]})
    _, out, _ = run(golden, candidate)
    lines = out.splitlines()
    assert lines[0] == "What is wrong"
    assert lines[1].split()[:4] == ["causal_lm", "3", "of", "3"]
    assert "wrong sign" in lines[1]
    judgement = compare.judge_folders(golden, candidate)
    assert str(judgement) == out.rstrip("\n")


def test_files_that_no_case_has_are_mentioned(run, golden, candidate):
    (candidate / "notes.txt").write_text("kernel of Tuesday")
    status, out, err = run(golden, candidate, "--json")
    assert (status, json.loads(out)["passed"]) == (0, True)
    assert err == "refloss: notes.txt: no case has this file\n"


def test_nothing_to_judge(run, golden, tmp_path):
    status, out, err = run(golden, tmp_path)
    assert (status, out) == (2, "")
    assert err.endswith(f"nothing to judge: it has no file of the {COUNT} cases\n")
    status, out, _ = run(golden, tmp_path, "--json", "--junit", tmp_path / "all.xml")
    assert status == 2
    assert json.loads(out)["passed"] is False
    assert ElementTree.parse(tmp_path / "all.xml").getroot().get("skipped") == str(COUNT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["golden"], "Missing argument 'CANDIDATE'"),
        (["golden", "nothing"], "nothing: no such folder"),
        (["golden", "file"], "file: not a folder"),
        (["nothing", "candidate"], "nothing: no golden files here: there is no manifest.json"),
        (["candidate", "candidate"], "candidate: no golden files here: there is no manifest.json"),
        (["garbled", "candidate"], "not a manifest"),
        (
            ["golden", "candidate", "--compute-dtype", "fp8"],
            "--compute-dtype: unknown compute type fp8; there are float64, float32, tf32, float16, bfloat16",
        ),
        (["golden", "candidate", "--junit", "nothing/x.xml"], "nothing/x.xml: no such folder: nothing"),
        (["golden", "candidate", "--html", "candidate"], "candidate: is a folder"),
        (["golden", "candidate", "--sugar"], "No such option: --sugar"),
        (["golden", "candidate", "--functions", "tea"], "unknown function tea; there are"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("candidate")
def test_what_cannot_be_judged_is_one_line(run, golden, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "golden").symlink_to(golden)
    (tmp_path / "file").write_text("")
    (tmp_path / "garbled").mkdir()
    (tmp_path / "garbled" / "manifest.json").write_bytes(b"\xff\xfe{")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


class ByParts:
    """Bounds that are never there as a whole."""

    def part(self, first, last):
        return np.full(last - first, 1e-6)


SIZE = 256 * 8192 * 4  # bytes of the logits, and of their gradient


def large_case(seed):
    generator = np.random.default_rng(seed)
    inputs = {
        "logits": generator.standard_normal((256, 8192), np.float32),
        "labels": generator.integers(8192, size=256),
    }
    return Case(f"masked_lm-{seed}", "masked_lm", inputs, {}, 1.0)


def write_large(golden, candidate, count):
    """Folders of so many cases, with right answers."""
    entries = []
    for case in map(large_case, range(count)):
        path = golden / f"{case.id}.safetensors"
        expected = store.expected_tensors(store.evaluate(case))
        save_tensors(path, {f"input.{name}": value for name, value in case.inputs.items()} | expected)
        save_tensors(candidate / path.name, {name: np.array(value) for name, value in answers(path).items()})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"id": case.id, "file": path.name, "sha256": digest, "function": case.function}
        entries.append(entry | {"parameters": {}, "grad_output": 1.0})
    (golden / "manifest.json").write_text(json.dumps({"format": 1, "refloss": "", "cases": entries}))


def peak_of(call):
    """What a call returns, and the most bytes that were taken meanwhile."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def bounds_by_parts(monkeypatch):
    monkeypatch.setattr(judge, "bounds", lambda *_: {"loss": ByParts(), "grad.logits": ByParts()})


@pytest.mark.usefixtures("bounds_by_parts")
def test_a_folder_takes_the_memory_of_one_case(tmp_path):
    peaks = {}
    for count in (1, 3):
        folders = [tmp_path / f"{name}-{count}" for name in ("golden", "candidate")]
        for folder in folders:
            folder.mkdir()
        write_large(*folders, count)
        judgement, peaks[count] = peak_of(functools.partial(compare.judge_folders, *folders))
        assert (judgement.passed, len(judgement.judged)) == (True, count)
    # The candidate's tensors and the oracle's, of one case.
    assert peaks[1] < 2 * SIZE + 2**23
    assert peaks[3] < peaks[1] + 2**20


@pytest.mark.usefixtures("bounds_by_parts")
def test_a_function_takes_the_memory_of_one_case():
    def fn(inputs, parameters, cotangent):
        result = refloss.masked_lm(**inputs, **parameters, grad_output=cotangent)
        return result.loss, result.grads

    cases = [large_case(seed) for seed in range(3)]
    peaks = [peak_of(functools.partial(check, fn, cases=cases[:count]))[1] for count in (1, 3)]
    # Two copies of the inputs, for the function and for the oracle, and the gradients of both.
    assert peaks[0] < 4 * SIZE + 2**23
    assert peaks[1] < peaks[0] + 2**20


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_cuts_nothing_off(width):
    long = TensorVerdict("grad.outputs_class", False, "too far off", "1 of 2 elements " * 9 + "last", None, 1e300, 2e10)
    case = CaseVerdict("deformable_detr_object_detection-bfloat16", "mse", False, (long,))
    good = CaseVerdict("a-case-that-passes", "mse", True, (TensorVerdict("loss", True, ulp=0.5, ratio=0.25),))
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        table.show(Judgement((case, good)), console)
    text = captured.get()
    assert all(len(line) <= width for line in text.splitlines())
    together = "".join(text.split())
    for part in ("1e+300", "2e+10", "last", "deformable_detr_object_detection-bfloat16"):
        assert part in together, part
    assert text.endswith("1 of 2 cases passed, 1 failed\n")


def test_control_characters_are_spelled_out():
    assert printable("grad.λ \x1b\n\ud800") == "grad.λ \\x1b\\n\\ud800"
