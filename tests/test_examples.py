"""The example programs: what they say of themselves is true."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jsonschema
import numpy as np
import pytest

import refloss
from examples import linear_models, matching, numpy_causal_lm
from examples.linear_models import MARGIN, MOST_EPOCHS, TASKS, compare, diabetes, digits, properties
from refloss.files import load_tensors, save_tensors
from refloss.golden import manifest, store
from refloss.testing import MismatchError, judge_folders
from refloss.testing.judging.allowances import written_beside
from refloss.testing.judging.callables import select
from tests.test_derivatives import TOLERANCE, fourth_order

# Well above guessing, so that two broken models cannot pass for two equal ones.
LEAST_SCORE = {digits: 0.95, properties: 0.7, diabetes: 0.3}


@pytest.mark.parametrize("make", TASKS, ids=lambda make: make.__name__)
def test_refloss_and_scikit_learn_arrive_at_one_model(make):
    task = make()
    outcome = compare(task)
    assert outcome.ours == pytest.approx(outcome.theirs, abs=MARGIN)
    assert outcome.ours > LEAST_SCORE[make]
    assert outcome.fit.epochs < MOST_EPOCHS
    fitted = getattr(task.estimator, "estimators_", [task.estimator])
    theirs = np.vstack([part.coef_ for part in fitted])
    np.testing.assert_allclose(outcome.fit.weights.T, theirs, rtol=0, atol=5e-3 * np.abs(theirs).max())


@pytest.mark.parametrize(("most_epochs", "status", "short"), [(MOST_EPOCHS, 0, "none"), (1, 1, "diabetes")])
def test_exit_status_and_last_line_tell_what_falls_short(monkeypatch, capsys, most_epochs, status, short):
    monkeypatch.setattr(linear_models, "TASKS", (diabetes,))
    monkeypatch.setattr(linear_models, "MOST_EPOCHS", most_epochs)
    assert linear_models.main() == status
    assert f"short of scikit-learn: {short}." in capsys.readouterr().out


def test_the_picture_of_a_matching_is_the_one_in_the_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["matching", "--out", str(tmp_path / "matching.svg")])
    matching.main()
    result = matching.losses()
    assert result.intermediates["assignment"].tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2]]
    picture = (tmp_path / "matching.svg").read_text()
    shown = Path("docs/img/matching.svg").read_text()
    for query, number in ((0, 0), (1, 1), (2, 2)):
        cost = f"{result.intermediates['cost_matrix'][query, number]:.2f}"
        assert cost.lstrip("-") in picture
        assert cost.lstrip("-") in shown


def test_a_small_step_along_the_arrows_fits_better():
    result = matching.losses()
    labels = [{"class_labels": np.arange(3), "boxes": matching.TARGETS}]
    moved = matching.BOXES - 1e-3 * result.grads["pred_boxes"][0]
    after = refloss.object_detection(matching.LOGITS[None], labels, moved[None], matching.CONFIG)
    for name in ("loss_bbox", "loss_giou"):
        assert after.components[name] < result.components[name]


class Language(NamedTuple):
    """A program that answers golden files, and how it is made of its source."""

    source: Path
    compilers: tuple[str, ...]
    options: tuple[str, ...]
    formats: tuple[str, ...]  # of the logits that it takes


_CPLUSPLUS_WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Wno-float-conversion", "-Werror")
LANGUAGES = {
    "C++": Language(
        Path("examples/cpp/causal_lm.cpp"),
        ("c++", "g++", "clang++"),
        ("-std=c++17", "-O2", *_CPLUSPLUS_WARNINGS),
        ("float32",),
    ),
    "Rust": Language(
        Path("examples/rust/causal_lm.rs"),
        ("rustc",),
        ("--edition", "2021", "-O", "-D", "warnings"),
        ("float32", "bfloat16", "float16"),
    ),
}


@pytest.fixture(scope="module", params=LANGUAGES.values(), ids=list(LANGUAGES))
def language(request):
    if not any(map(shutil.which, request.param.compilers)):
        pytest.skip(f"there is no {', no '.join(request.param.compilers)}")
    return request.param


@pytest.fixture(scope="module")
def program(language, tmp_path_factory):
    return compiled(language, language.source, tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    store.write(folder, {"causal_lm", "masked_lm"})
    return folder


def compiled(language, source, folder):
    """The program of a source file, which a compiler has nothing to say against."""
    compiler, program = next(filter(None, map(shutil.which, language.compilers))), folder / source.stem
    subprocess.run([compiler, *language.options, "-o", program, source], check=True)
    return program


def test_a_compiled_program_answers_golden_files_and_passes(language, program, golden, tmp_path):
    candidate = tmp_path / "candidate"
    run = subprocess.run([program, golden, candidate], capture_output=True, text=True, check=True)
    judgement = judge_folders(golden, candidate)
    assert run.stdout == f"{len(judgement.judged)} cases written to {candidate}\n"
    offered = select("causal_lm", dtypes=language.formats)
    asked = {case.id for case in offered if case.parameters.keys() <= numpy_causal_lm.KNOWN}
    assert {case.id for case in judgement.judged} == asked
    row = f"| `{language.source.as_posix()}` | float32 | {len(asked)} | {len(asked)} |"
    assert row in Path("docs/outside_users.md").read_text().splitlines()
    assert judgement.passed, [tensor for case in judgement.judged for tensor in case.tensors if not tensor.passed]


def test_a_compiled_program_with_a_mistake_fails(language, golden, tmp_path):
    source = language.source.read_text()
    # A cotangent that is not used at all is something that compilers notice.
    right, wrong = "(grad_output / normaliser)", "(grad_output / grad_output / normaliser)"
    assert right in source
    broken = tmp_path / f"broken{language.source.suffix}"
    broken.write_text(source.replace(right, wrong))
    program, candidate = compiled(language, broken, tmp_path), tmp_path / "candidate"
    subprocess.run([program, golden, candidate], check=True)
    failed = {case.id: case for case in judge_folders(golden, candidate).judged if not case.passed}
    assert len(failed) >= 10
    (gradient,) = (tensor for tensor in failed["causal_lm-float32"].tensors if not tensor.passed)
    assert gradient.name == "grad.logits"
    assert "upstream" in gradient.explanation


def test_a_compiled_program_says_what_it_cannot_read(program, tmp_path):
    for arguments, message in (
        ([], "usage"),
        ([tmp_path, tmp_path / "candidate"], "manifest.json: cannot be read"),
    ):
        run = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert message in run.stderr


def code_blocks(language, page="docs/tutorial.md"):
    """What a page's reader types."""
    return re.findall(rf"```{language}\n(.*?)```", Path(page).read_text(), re.DOTALL)


def test_a_newcomer_s_two_commands_are_a_line_each_that_needs_nothing_before_it():
    blocks = code_blocks(r"\w*", "README.md")[:2]
    assert blocks == code_blocks("sh", "README.md")[:2]
    for block in blocks:
        (line,) = block.splitlines()
        first, *others = line.split(" && ")
        assert first == "python3 -m venv .venv"
        assert all(command.startswith(".venv/bin/") for command in others)
    install, tests = blocks
    assert install.endswith(".venv/bin/refloss golden write golden\n")
    # The same without the paths, so that pytest compiles kernels first.
    last = Path(".ci/run").read_text().splitlines()[-1]
    assert f"{tests.rpartition('.venv/bin/')[2].rstrip()} tests conformance" == last


def test_later_commands_are_of_what_those_two_have_installed():
    first, *others = (line for block in code_blocks("sh", "README.md")[2:] for line in block.splitlines())
    assert first == ". .venv/bin/activate"
    for program, *arguments in map(str.split, others):
        assert program in ("python", "refloss")
        if program == "python":
            script = f"{arguments[1].replace('.', '/')}.py" if arguments[0] == "-m" else arguments[0]
            assert Path(script).exists()


def test_the_bounds_of_the_page_tell_right_from_wrong():
    (block,) = (block for block in code_blocks("python", "docs/tolerances.md") if "refloss.testing.bounds(" in block)
    exec(block, {})
    with pytest.raises(AssertionError):
        exec(block.replace("np.float32(2 * 0.3)", "np.float32(2 * 0.30001)"), {})


def test_the_numpy_example_passes(golden, tmp_path):
    numpy_causal_lm.main(golden, tmp_path / "candidate")
    judgement = judge_folders(golden, tmp_path / "candidate")
    assert judgement.passed
    assert {case.function for case in judgement.judged} == {"causal_lm"}
    assert len(judgement.judged) >= 15


def test_the_page_on_the_format_judges_with_nothing_but_a_file(tmp_path):
    """Its program agrees with refloss compare, on right answers and on wrong ones; its manifest is one."""
    program = code_blocks("python", "docs/golden_format.md")[-1]
    (tmp_path / "judge.py").write_text(program)
    golden, candidate = tmp_path / "golden", tmp_path / "candidate"
    store.write(golden, {"causal_lm"}, beside=written_beside(("float32",), tmp_path))
    numpy_causal_lm.main(golden, candidate)

    def told():
        command = [sys.executable, tmp_path / "judge.py", golden, candidate]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.stderr == ""
        return run.returncode, {tuple(line.split()) for line in run.stdout.splitlines() if line}

    assert judge_folders(golden, candidate).passed
    assert told() == (0, set())
    for i, path in enumerate(sorted(candidate.iterdir())):
        tensors = dict(load_tensors(path))
        gradient = tensors["grad.logits"].astype(np.float64) * (1.0 + 0.02 * (i % 2))
        tensors["grad.logits"] = gradient.astype(tensors["grad.logits"].dtype)
        save_tensors(path, tensors)
    wrong = {
        (case.id, tensor.name)
        for case in judge_folders(golden, candidate).judged
        for tensor in case.tensors
        if tensor.passed is False
    }
    assert len(wrong) >= 5
    assert told() == (1, wrong)
    (made,) = code_blocks("json", "docs/golden_format.md")
    made = json.loads(made.replace("…", "0" * 64))
    jsonschema.validate(made, json.loads(manifest.SCHEMA.read_text()))
    assert set(made) - {"seed", "cases_per_function"} == set(json.loads((golden / "manifest.json").read_text()))


def test_the_page_on_the_format_shows_a_case_of_one_s_own(tmp_path, monkeypatch):
    *_, case, _ = code_blocks("python", "docs/golden_format.md")
    monkeypatch.chdir(tmp_path)
    for name in ("input", "target"):
        np.save(f"{name}.npy", np.random.default_rng(len(name)).standard_normal(7))
    exec(case, {})
    assert [fault for _, fault in store.check(tmp_path / "golden")] == [None]
    with pytest.raises(MismatchError):
        exec(case.replace("2.0 * grad_output", "2.0"), {})


@pytest.mark.parametrize(
    "page",
    ["speech", "transducers", "linear", "many_machines", "policy_presets", "preferences", "distillation"],
)
def test_pages_whose_program_needs_nothing_else(page, tmp_path, monkeypatch):
    blocks = code_blocks("python", f"docs/{page}.md")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert np.isfinite(names["r"].loss).all()


def test_the_page_on_mixtures_of_experts_tells_layers_apart():
    names: dict = {}
    for block in code_blocks("python", "docs/mixture_of_experts.md"):
        exec(block, names)
    assert len(names["layers"]) == 2


def test_the_page_on_contrastive_losses_chains_gradients_to_embeddings():
    names: dict = {}
    for block in code_blocks("python", "docs/contrastive.md"):
        exec(block, names)
    given = {"image": names["image"][:3, :4], "text": names["text"][:3, :4], "log_scale": np.array(0.7)}
    assert_chained(names["clip"], given)
    assert_chained(names["siglip"], given | {"bias": np.array(-0.5)})


def test_the_page_on_log_probabilities_has_the_gradient_of_its_loss():
    (block,) = code_blocks("python", "docs/log_probs.md")
    names: dict = {}
    exec(block, names)
    mask, advantages, tokens = names["completion"], names["advantages"], names["tokens"]

    def loss(x):
        x = x / 0.9
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        chosen = np.log(np.take_along_axis(p, tokens[..., None], -1)[..., 0])
        entropy = -(p * np.log(p)).sum(-1)
        return -((advantages * chosen + 0.01 * entropy) * mask).sum() / mask.sum()

    x = names["logits"].astype(np.float64)
    assert abs(loss(x) - names["loss"]) < TOLERANCE
    # A gradient of float32 is as far off as its rounding.
    np.testing.assert_allclose(names["gradient"], fourth_order(loss, x), rtol=0, atol=2.0**-26)


def assert_chained(function, inputs):
    """A function's gradients are the derivatives of its loss."""
    _, grads = function(**inputs)
    assert grads.keys() == inputs.keys()
    for key, value in inputs.items():
        expected = fourth_order(lambda x, key=key: function(**inputs | {key: x})[0], value)
        np.testing.assert_allclose(grads[key], expected, rtol=0, atol=TOLERANCE, err_msg=key)


def test_the_page_on_policies_has_the_gradient_of_its_loss():
    (block,) = code_blocks("python", "docs/policies.md")
    names: dict = {}
    exec(block, names)
    mask, tokens, advantages = names["mask"], names["tokens"], names["advantages"]
    old = names["log_probs"] - 0.01

    def loss(x):
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        ratio = np.exp(np.log(np.take_along_axis(p, tokens[..., None], -1)[..., 0]) - old)
        clipped = np.clip(ratio, 0.8, 1.28)
        return -(np.minimum(ratio * advantages[:, None], clipped * advantages[:, None]) * mask).sum() / mask.sum()

    x = names["logits"].astype(np.float64)
    assert abs(loss(x) - names["policy"].loss) < TOLERANCE
    np.testing.assert_allclose(names["gradient"], fourth_order(loss, x), rtol=0, atol=2.0**-26)
