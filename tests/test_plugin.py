"""The pytest plugin, in runs of pytest of its own."""

import importlib.metadata

import pytest

import refloss
from refloss.golden.corpus import corpus
from refloss.testing.judging import callables
from refloss.testing.report import page

pytest_plugins = ["pytester"]

# Where refloss is installed with its entry point, that loads the plugin.
LOADED = any(point.name == "refloss" for point in importlib.metadata.entry_points(group="pytest11"))
# Without others' plugins: Zarr's imports NumPy.
OTHERS = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:zarr")
OPTIONS = (*OTHERS, *(() if LOADED else ("-p", "refloss.testing.plugin")))
VERSIONS = f"refloss {refloss.__version__}, numba *, numpy *"
IDS = [case.id for case in corpus({"mse"})]

KERNEL = """
    import pytest
    from refloss.registry import FUNCTIONS

    def kernel(case, sign=1):
        call = FUNCTIONS[case.function].call
        result = call(**case.inputs, **case.parameters, grad_output=case.grad_output)
        return result.loss, {name: sign * value for name, value in result.grads.items()}
"""
SOUND = """
    @pytest.mark.refloss_cases("mse")
    def test_kernel(refloss_case):
        loss, grads = kernel(refloss_case)
        refloss_case.assert_matches(loss=loss, grads=grads)
"""
WRONG = """
    @pytest.mark.refloss_cases("mse-*6-mean", "mse-float32-mean", "mse-float64-mean")
    @pytest.mark.refloss_expected_failures("expected.txt")
    def test_kernel(refloss_case):
        loss, grads = kernel(refloss_case, -1 if "16" in refloss_case.id else 1)
        refloss_case.assert_matches(loss=loss, grads=grads)
"""


@pytest.fixture(scope="module", autouse=True)
def _warm():
    """A run within this process forgets what it imports, and neither NumPy nor Numba can be imported twice."""
    for case in map(callables.GoldenCase, callables.select(["mse", "l1"])):
        with pytest.raises(callables.MismatchError):
            case.assert_matches(loss=case.result.loss, grads={name: -1 - g for name, g in case.result.grads.items()})


@pytest.fixture
def run(pytester):
    """Run tests in a file of their own, in this process."""

    def call(*parts, options=()):
        pytester.makepyfile(test_it="".join(parts))
        return pytester.runpytest_inprocess(*OPTIONS, "-Wignore::pytest.PytestAssertRewriteWarning", *options)

    return call


def test_every_case_of_a_function(run):
    result = run(KERNEL, SOUND, options=["-v"])
    result.assert_outcomes(passed=len(IDS))
    result.stdout.fnmatch_lines([f"*collected {len(IDS)} items", VERSIONS])
    result.stdout.fnmatch_lines_random([f"*::test_kernel[[]{case}[]] PASSED*" for case in IDS])


def test_a_case_of_one_s_own_stands_among_others(run):
    own = """
    import numpy as np
    from refloss.testing import golden_case

    OWN = golden_case("mse", id="mine", input=np.arange(3.0), target=np.ones(3))

    @pytest.mark.refloss_cases(OWN, "mse-float32-mean")
    def test_kernel(refloss_case):
        loss, grads = kernel(refloss_case, -1 if refloss_case.id == "mine" else 1)
        refloss_case.assert_matches(loss=loss, grads=grads)
"""
    result = run(KERNEL, own, options=["-v"])
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines_random(
        ["*::test_kernel[[]mine[]] FAILED*", "*::test_kernel[[]mse-float32-mean[]] PASSED*"]
    )


def test_a_failure_shows_the_table(run):
    result = run(
        KERNEL, SOUND.replace("= kernel(refloss_case)", "= kernel(refloss_case, -1)"), options=["-k", "mse-sum"]
    )
    result.assert_outcomes(failed=2, deselected=len(IDS) - 2)
    result.stdout.fnmatch_lines(
        ["*tensor *ulp *error ÷ bound *", "*loss *passes", "*grad.input *at [[]?, ?[]]: * instead*"]
    )
    result.stdout.no_fnmatch_line("*callables.py*: in *")


@pytest.mark.parametrize("as_setting", [False, True])
def test_functions_and_dtypes(run, pytester, as_setting):
    test = SOUND.replace('"mse"', "")
    options = ["--refloss-functions", "mse,l1", "--refloss-dtypes=float16,bfloat16", "-v"]
    if as_setting:
        pytester.makeini("[pytest]\nrefloss_functions = mse l1\nrefloss_dtypes = float16, bfloat16\n")
        options = ["-v"]
    result = run(KERNEL, test, options=options)
    coarse = [case for case in corpus({"mse", "l1"}) if case.inputs["input"].dtype.itemsize == 2]
    result.assert_outcomes(passed=len(coarse))
    names = [f"*{name}-{dtype}-mean* PASSED*" for name in ("mse", "l1") for dtype in ("float16", "bfloat16")]
    result.stdout.fnmatch_lines([VERSIONS, f"*collected {len(coarse)} items"])
    result.stdout.fnmatch_lines_random(names)
    assert str(result.stdout).count("numba") == 1


def test_an_option_goes_before_a_setting_and_after_a_marker(run, pytester):
    pytester.makeini("[pytest]\nrefloss_functions = l1\n")
    run(KERNEL, SOUND).assert_outcomes(skipped=1)
    run(KERNEL, SOUND, options=["--refloss-functions=mse"]).assert_outcomes(passed=len(IDS))


@pytest.mark.parametrize(
    ("test", "option", "message"),
    [
        (
            SOUND,
            "--refloss-functions=mse,hubert",
            "unknown function hubert (did you mean 'huber'[?]); there are mse, l1,*",
        ),
        (SOUND, "--refloss-dtypes=float8", "unknown dtype float8 (did you mean 'float64'[?]); there are float32,*"),
        (
            SOUND.replace('"mse"', '"mse-some"'),
            "-q",
            "no case is called mse-some (did you mean 'mse-*'[?]); there are*",
        ),
        (
            SOUND.replace("refloss_cases", "refloss_case"),
            "-Wignore::pytest.PytestUnknownMarkWarning",
            "*: there is no mark refloss_case; did you mean 'refloss_cases'[?]",
        ),
        (SOUND.replace('"mse"', 'names="mse"'), "-q", "*: refloss_cases has no names: give it names without keywords"),
        (WRONG.replace('"expected.txt"', ""), "-q", "*: refloss_expected_failures takes one file; 0 are given"),
        (
            SOUND.replace("refloss_case)", "tmp_path)"),
            "-q",
            "test_kernel: refloss_cases needs the fixture refloss_case",
        ),
    ],
)
def test_names_that_do_not_exist(run, test, option, message):
    result = run(KERNEL, test, options=[option])
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])


def test_a_fixture_that_does_not_exist(run):
    result = run("def test(refloss_cases): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["there is no fixture refloss_cases; did you mean 'refloss_case'[?]"])


def test_marks_of_a_project_s_own(run, pytester):
    pytester.makeini("[pytest]\nmarkers =\n    refloss_slow(why): takes long\n    refloss_quick\n")
    own = """
    import pytest

    @pytest.mark.refloss_slow("many")
    @pytest.mark.refloss_quick
    def test(): pass
"""
    run(own).assert_outcomes(passed=1)


OF_UNITTEST = """
    import unittest
    import pytest

    class TestKernel(unittest.TestCase):
        @pytest.mark.refloss_cases("mse")
        def test_kernel(self):
            pass

        def test_other(self):
            pass
"""


def test_a_method_of_unittest_cannot_have_cases(run):
    result = run(OF_UNITTEST)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_kernel: refloss_cases is for functions and plain classes, as refloss_case is"])


def test_a_method_of_a_plain_class_has_cases(run):
    test = SOUND.replace("def test_kernel(", "def test_kernel(self, ").replace("\n    ", "\n        ")
    run(KERNEL, "\n    class TestKernel:" + test).assert_outcomes(passed=len(IDS))


def test_expected_failures(run, pytester):
    (pytester.path / "expected.txt").write_text(
        "# half precision\nmse-float16-mean  wrong sign\n\nmse-bfloat16-mean same\n"
    )
    result = run(KERNEL, WRONG, options=["-rx"])
    result.assert_outcomes(passed=2, xfailed=2)
    result.stdout.fnmatch_lines(["XFAIL *mse-float16-mean] - wrong sign (expected.txt:2)*"])


def test_lines_that_no_longer_hold(run, pytester):
    lines = ["mse-float16-mean wrong sign", "mse-float32-mean once", "mse-some no such case", "mse-bfloat16-mean"]
    (pytester.path / "expected.txt").write_text("\n".join([*lines, lines[0]]))
    result = run(KERNEL, WRONG)
    # The bfloat16 case has lost its line, float32 passes, three lines say nothing.
    result.assert_outcomes(passed=1, xfailed=1, failed=2, errors=3)
    result.stdout.fnmatch_lines_random(
        [
            "expected.txt:2 is stale: mse-float32-mean passes; remove the line",
            "expected.txt:3: there is no case mse-some",
            "expected.txt:4: mse-bfloat16-mean has no reason; expected 'id reason'",
            "expected.txt:5: mse-float16-mean is in expected.txt:1 already",
        ]
    )


def test_a_file_that_is_not_there(run):
    result = run(KERNEL, WRONG.replace("-1 if", "1 if"))
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*expected.txt: no such file"])


@pytest.fixture
def written(monkeypatch):
    """What is written as a report."""
    reports = []
    monkeypatch.setattr(page, "write", lambda path, judgement: reports.append((path, judgement)))
    return reports


JUDGED = """
    import refloss

    def test_calls():
        result = refloss.mse([1.0, 2.0], [3.0, 5.0])
        for scale in (1.0, 2.0):
            refloss.testing.assert_matches(result, loss=result.loss)

    def test_check():
        refloss.testing.check(lambda *arguments: (None, {}), cases=["mse-sum", "mse-none"])
"""


def test_the_report_holds_all_that_was_judged(run, written, pytester):
    result = run(KERNEL, SOUND, JUDGED, options=["--refloss-html", "report.html"])
    result.assert_outcomes(passed=len(IDS) + 1, failed=1)
    ((path, judgement),) = written
    assert path == pytester.path / "report.html"
    assert [case.id for case in judgement.cases] == [
        *(f"test_it.py::test_kernel[{case}]" for case in IDS),
        "test_it.py::test_calls mse",
        "test_it.py::test_calls mse (2)",
        "test_it.py::test_check mse-sum",
        "test_it.py::test_check mse-none",
    ]
    assert [case.passed for case in judgement.cases] == [True] * (len(IDS) + 2) + [False] * 2
    assert judgement.cases[0].tensors[0].spread is not None
    assert [(each.function, each.failing) for each in judgement.diagnoses] == [("mse", 2)]
    assert judgement.command.startswith("pytest ")
    assert judgement.command.endswith("--refloss-html report.html")
    assert judgement.environment["refloss"] == refloss.__version__
    result.stdout.fnmatch_lines([f"refloss: report of {len(IDS) + 4} verdicts in {path}"])
    assert not callables.listeners


def test_the_report_of_workers(run, written):
    pytest.importorskip("xdist")
    options = ["--refloss-html=report.html", "-n2", "-k", "mse-none or mse-hit"]
    result = run(KERNEL, SOUND, options=options)
    result.assert_outcomes(passed=2)
    assert {case.id for case in written[0][1].cases} == {
        f"test_it.py::test_kernel[mse-{name}]" for name in ("none", "hit")
    }
    result.stdout.fnmatch_lines(["*refloss: report of 2 verdicts in *"])


def test_nothing_to_report(run, written):
    result = run("def test(): pass", options=["--refloss-html=report.html"])
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["refloss: nothing was judged, no report is written"])
    assert not written
    result = run("def test(): pass", options=["--refloss-html=missing/report.html"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--refloss-html missing/report.html: no such folder: *"])


def test_who_does_not_use_it_pays_nothing(pytester):
    pytester.makepyfile(
        """
        import sys

        def test():
            assert "refloss.testing.plugin" in sys.modules
            heavy = {"numpy", "numba", "ml_dtypes", "scipy", "safetensors", "rich", "typer", "refloss.registry"}
            assert not heavy & set(sys.modules)
        """
    )
    result = pytester.runpytest_subprocess(*OPTIONS)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("refloss *")
