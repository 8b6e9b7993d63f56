"""`refloss check`: a Python function judged from the shell."""

import json
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss import cli
from refloss.golden.corpus import cases_of
from refloss.testing.judging.frameworks import framework

KERNELS = """
import numpy as np
import refloss
from neighbour import SIGN

print("imported")


def right(inputs, parameters, cotangent):
    print("called")
    result = refloss.mse(**inputs, **parameters, grad_output=cotangent)
    return result.loss, {"input": SIGN * result.grads["input"], "target": SIGN * result.grads["target"]}


def wrong(inputs, parameters, cotangent):
    loss, grads = right(inputs, parameters, cotangent)
    return loss, grads | {"target": -grads["target"]}


def partial(inputs, parameters, cotangent):
    if inputs["input"].dtype != np.float32:
        raise NotImplementedError("float32 alone")
    return right(inputs, parameters, cotangent)


def none(inputs, parameters, cotangent):
    raise NotImplementedError


def broken(inputs, parameters, cotangent):
    raise RuntimeError("first\\nsecond \\x1b[31m")


def leaves(inputs, parameters, cotangent):
    raise SystemExit(0)


class Kernels:
    right = staticmethod(right)


number = 3
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Call the command in a folder that has a module, and forget what it imports; returns status, stdout and stderr."""
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "neighbour.py").write_text("SIGN = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["refloss", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        for name in ("kernels", "neighbour", "ends", "raises"):
            sys.modules.pop(name, None)
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return call


WITHOUT_WEIGHTS = ("--function", "mse", "--cases", "mse-*6-mean,mse-float32-mean,mse-float64-mean,mse-sum,mse-none")


@pytest.mark.parametrize("target", ["kernels:right", "kernels.py:right", "./kernels.py:Kernels.right"])
def test_a_right_function_passes(run, target):
    status, out, err = run(target, *WITHOUT_WEIGHTS)
    assert status == 0
    assert out.splitlines()[-1] == "6 of 6 cases passed"
    assert set(err.split()) == {"imported", "called"}  # what it prints is not the judgement


def test_one_with_a_mistake_fails(run, tmp_path):
    files = ["--junit", "x.xml", "--html", "x.html"]
    status, out, _ = run("kernels:wrong", *WITHOUT_WEIGHTS, "--json", *files)
    judged = json.loads(out)
    assert (status, judged["passed"]) == (1, False)
    failing = {tensor["name"] for case in judged["cases"] for tensor in case["tensors"] if not tensor["passed"]}
    assert failing == {"grad.target"}
    assert judged["corpus"] == f"built-in, refloss {refloss.__version__}"
    assert judged["command"].startswith("refloss check kernels:wrong --function mse --cases 'mse-*")
    assert [(each["function"], len(each["cases"])) for each in judged["diagnoses"]] == [("mse", 6)]
    assert ElementTree.parse(tmp_path / "x.xml").getroot().get("failures") == "6"
    assert "kernels:wrong" in (tmp_path / "x.html").read_text()
    assert run("kernels:wrong", *WITHOUT_WEIGHTS, "--grads", "input")[0] == 0
    assert run("kernels:wrong", *WITHOUT_WEIGHTS, "--grads", "")[0] == 0


def test_what_is_not_answered_is_not_judged(run):
    status, out, _ = run("kernels:partial", *WITHOUT_WEIGHTS)
    assert status == 0
    assert out.splitlines()[-1] == "3 of 3 cases passed, 3 not answered"
    status, out, _ = run("kernels:partial", *WITHOUT_WEIGHTS, "--dtypes", "float32", "--json")
    assert [case["id"] for case in json.loads(out)["cases"]] == ["mse-float32-mean", "mse-sum", "mse-none"]
    status, out, err = run("kernels:none", *WITHOUT_WEIGHTS)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "refloss: kernels:none: nothing to judge: it answers none of the 6 cases: "
        "mse-float32-mean: not answered: NotImplementedError"
    )


def test_an_exception_is_a_case_that_fails(run):
    status, out, _ = run("kernels:broken", "--cases", "mse-sum")
    assert status == 1
    assert "FAIL mse-sum\n  RuntimeError: first\\nsecond \\x1b[31m " in out


def test_one_that_ends_the_process_does_not_pass(run):
    status, out, _ = run("kernels:leaves", "--cases", "mse-sum")
    assert status == 1
    assert "FAIL mse-sum\n  SystemExit: 0 " in out


BAD = [
    (["kernels", "--function", "mse"], "kernels: expected module:function, or path.py:function"),
    (["kernels:", "--function", "mse"], "kernels:: expected module:function"),
    (["kernels:left", "--function", "mse"], "kernels has no left"),
    (["kernels:number", "--function", "mse"], "kernels:number is of type int; expected a function"),
    (["colonels:right", "--function", "mse"], "colonels cannot be imported: ModuleNotFoundError: No module named"),
    (["missing.py:right", "--function", "mse"], "missing.py cannot be imported: FileNotFoundError: "),
    (["raises:right", "--function", "mse"], "raises cannot be imported: ZeroDivisionError: division by zero"),
    (["ends.py:right", "--function", "mse"], "ends.py cannot be imported: SystemExit: 7"),
    (["kernels:right"], "Missing option '--function'"),
    (["kernels:right", "--function", "mea"], "unknown function mea; there are mse"),
    (
        ["kernels:right", "--function", "mse", "--dtypes", "float8"],
        "unknown dtype float8 (did you mean 'float64'?); there are float32",
    ),
    (
        ["kernels:right", "--cases", "mse-some"],
        "no case is called mse-some (did you mean 'mse-sum'?); there are mse-float32-mean",
    ),
    (["kernels:right", "--cases", "mse-sum", "--grads", "logits"], "unknown grad logits; there are input, target"),
    (
        ["kernels:right", "--function", "mse", "--compute-dtype", "fp8"],
        "--compute-dtype: unknown compute type fp8; there are",
    ),
    (["kernels:right", "--function", "mse", "--framework", "tf"], "unknown framework tf; there are numpy, torch, jax"),
    (["kernels:right", "--function", "mse", "--framework", "torch"], "torch cannot be imported: "),
    (["kernels:right", "--function", "mse", "--html", "no/x.html"], "no/x.html: no such folder: no"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_be_judged_is_one_line(run, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "ends.py").write_text("raise SystemExit(7)\n")
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line not in ("imported", "called")]
    assert line.startswith("refloss: ")
    assert message in line


def test_no_framework_is_imported_that_was_not_named(tmp_path):
    (tmp_path / "kernels.py").write_text(KERNELS)
    (tmp_path / "neighbour.py").write_text("SIGN = 1\n")
    program = (
        "import sys\nfrom refloss.cli import main\n"
        "try:\n    main()\nfinally:\n    print(sorted({'torch', 'jax'} & set(sys.modules)))"
    )
    arguments = ["check", "kernels:right", "--cases", "mse-sum"]
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout.splitlines()[-2:] == ["1 of 1 case passed", "[]"]


def test_bfloat16_comes_to_torch_by_its_bits(monkeypatch):
    class Tensor:
        def __init__(self, array):
            self.array = array

        def view(self, dtype):
            return Tensor(self.array.view(dtype))

    def from_numpy(array):
        if array.dtype.kind not in "fiu":
            raise TypeError(f"can't convert {array.dtype}")
        return Tensor(array)

    torch = SimpleNamespace(from_numpy=from_numpy, bfloat16=ml_dtypes.bfloat16)
    monkeypatch.setitem(sys.modules, "torch", torch)
    to_native = framework("torch").to_native
    for case in cases_of("causal_lm"):
        for value in case.inputs.values():
            made = to_native(value.copy())
            assert (made.array.dtype, made.array.tobytes()) == (value.dtype, np.ascontiguousarray(value).tobytes())
