"""What others rely on of golden files: cases of one's own, fresh ones, the manifest's form, bounds in files."""

import json
import math
import random
from types import SimpleNamespace

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refloss
from refloss.files import load_tensors
from refloss.golden import manifest, store
from refloss.golden.corpus import corpus, dtype_of
from refloss.golden.drawn import fresh
from refloss.registry import FUNCTIONS
from refloss.testing import MismatchError, check, golden_case, judge_folders
from refloss.testing.judging.allowances import written_beside
from tests.test_cli import run  # noqa: F401


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def valid(instance):
    schema = json.loads(manifest.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(instance, schema, jsonschema.Draft202012Validator)
    return True


def arrays_of(dtype=np.float32):
    generator = np.random.default_rng(0)
    logits = (generator.standard_normal((3, 8, 21)) * 4).astype(dtype)
    labels = generator.integers(21, size=(3, 8))
    labels[1, 4:] = -100
    return logits, labels


@pytest.fixture
def files(tmp_path):
    logits, labels = arrays_of(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", logits)
    np.savez(tmp_path / "y.npz", labels=labels)
    save_file({"input.logits": np.float32(logits), "input.labels": labels}, tmp_path / "both.safetensors")
    return tmp_path


def add(folder, case):
    store.add(folder, case.case, case.result)


def test_anyone_s_arrays_are_a_golden_case(run, files):  # noqa: F811
    options = ["--num-items-in-batch", "40", "--grad-output", "0.5"]
    given = ["--logits", files / "x.npy", "--labels", files / "y.npz"]
    folder = files / "new" / "DIR"
    assert run("golden", "add", folder, "causal_lm", *given, *options) == (0, f"causal_lm written to {folder}\n", "")
    assert run("golden", "add", folder, "masked_lm", files / "both.safetensors", "--id", "mine")[0] == 0
    made = manifest_of(folder)
    assert valid(made)
    first, second = made["cases"]
    assert (first["id"], first["function"], first["grad_output"]) == ("causal_lm", "causal_lm", 0.5)
    assert first["parameters"] == {"num_items_in_batch": 40}
    assert (second["id"], second["file"], second["parameters"]) == ("mine", "mine.safetensors", {})
    logits, labels = arrays_of(ml_dtypes.bfloat16)
    expected = refloss.causal_lm(logits, labels, num_items_in_batch=40, grad_output=0.5)
    tensors = load_tensors(folder / first["file"])
    assert tensors["input.logits"].dtype == tensors["expected.grad.logits"].dtype == ml_dtypes.bfloat16
    assert tensors["expected.grad.logits"].tobytes() == expected.grads["logits"].tobytes()
    assert tensors["expected.loss"] == expected.loss
    assert run("golden", "check", folder)[:2] == (0, "2 of 2 cases have the same bits\n")


def test_a_cotangent_from_a_file_and_weights_of_components(run, files):  # noqa: F811
    logits, labels = (value.reshape(24, *value.shape[2:]) for value in arrays_of())
    cotangent = np.random.default_rng(1).standard_normal(24)
    np.savez(files / "ce.npz", logits=logits, target=labels)
    np.save(files / "c.npy", cotangent)
    options = ["--reduction", "none", "--grad-output", files / "c.npy"]
    assert run("golden", "add", files / "g", "cross_entropy", files / "ce.npz", *options)[0] == 0
    (scene,) = fresh("object_detection", 0, 1)
    save_file({name: np.ascontiguousarray(value) for name, value in scene.inputs.items()}, files / "s.safetensors")
    options = ["--config", json.dumps(scene.parameters["config"]), "--grad-output", '{"loss_bbox": -2}']
    assert run("golden", "add", files / "g", "object_detection", files / "s.safetensors", *options)[0] == 0
    array, mapping = manifest_of(files / "g")["cases"]
    assert valid(manifest_of(files / "g"))
    assert (array["grad_output"], mapping["grad_output"]) == (None, {"loss_bbox": -2})
    tensors = load_file(files / "g" / array["file"])
    assert np.array_equal(tensors["grad_output"], cotangent)
    expected = refloss.cross_entropy(logits, labels, reduction="none", grad_output=cotangent)
    assert tensors["expected.grad.logits"].tobytes() == expected.grads["logits"].tobytes()
    assert run("golden", "check", files / "g")[0] == 0


def test_what_cannot_be_added_leaves_a_folder_as_it_was(run, files, monkeypatch):  # noqa: F811
    folder, both = files / "g", files / "both.safetensors"
    assert run("golden", "add", folder, "masked_lm", both)[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for options, message in (
        ([], "there is a case 'masked_lm' already"),
        (["--id", "../x"], "'../x' is no id"),
        (
            ["--id", "x", "--bounds", "float8"],
            "--bounds: unknown compute type float8 (did you mean 'float64'?); there are",
        ),
        (["--id", "x", "--grad-output", "tea"], "--grad-output is 'tea'"),
        (["--id", "x", "--grad-output", '{"a": 1}'], "grad_output"),
        (["--id", "x", "--ignore-index", "9" * 20], "ignore_index is 999"),
        (["--id", "x", "--labels", files / "x.npy"], "labels has dtype bfloat16"),
    ):
        status, out, err = run("golden", "add", folder, "masked_lm", both, *options)
        assert (status, out, len(err.splitlines())) == (2, "", 1), options
        assert message in err
    monkeypatch.setattr("refloss.files.save_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert run("golden", "add", folder, "masked_lm", both, "--id", "x")[0] == 2
    status, _, err = run("golden", "write", folder, "--only", "masked_lm")
    assert (status, "has cases of your own, masked_lm, which would be lost" in err) == (2, True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert run("golden", "add", both, "masked_lm", both)[0] == 2


def test_a_computed_loss_as_a_golden_case(run, files):  # noqa: F811
    source, golden, candidate = files / "both.safetensors", files / "golden", files / "candidate"
    golden.mkdir()
    candidate.mkdir()
    options = ["--num-items-in-batch", "7", "--grad-output", "-3"]
    status, printed, _ = run("compute", "masked_lm", source, *options, "--golden", golden / "mine.safetensors")
    assert (status, printed) == run("compute", "masked_lm", source, *options, "--out", candidate / "mine.safetensors")[
        :2
    ]
    assert run("compute", "masked_lm", source, "--golden", golden)[0] == 0
    assert [case["id"] for case in manifest_of(golden)["cases"]] == ["mine", "masked_lm"]
    judgement = judge_folders(golden, candidate)
    assert (judgement.passed, len(judgement.judged)) == (True, 1)
    for options in (["--out", candidate / "b.safetensors"], ["--grad-dtype", "float64"]):
        assert run("compute", "masked_lm", source, "--golden", golden / "b.safetensors", *options)[0] == 2


def masked_lm(inputs, parameters, cotangent):
    result = refloss.masked_lm(**inputs, **parameters, grad_output=cotangent)
    return result.loss, result.grads


def test_a_case_of_one_s_own_is_used_as_a_built_in_one(tmp_path):
    logits, labels = arrays_of()
    case = golden_case("masked_lm", id="mine", logits=logits, labels=labels, num_items_in_batch=7, grad_output=-3.0)
    right = refloss.masked_lm(logits.copy(), labels.copy(), num_items_in_batch=7, grad_output=-3.0)
    logits[:], labels[:] = 0.0, 0  # what is the caller's may change
    assert (case.id, case.function, case.parameters, case.grad_output) == (
        "mine",
        "masked_lm",
        {"num_items_in_batch": 7.0},
        -3.0,
    )
    assert case.result.loss == right.loss
    case.assert_matches(loss=right.loss, grads=right.grads)
    case.inputs["logits"][:] = 0.0
    assert check(masked_lm, cases=[case, "masked_lm-float32"]).passed
    assert [verdict.id for verdict in check(masked_lm, cases=case).judged] == ["mine"]

    def ignores_the_cotangent(inputs, parameters, _):
        return masked_lm(inputs, parameters, 1.0)

    with pytest.raises(MismatchError):
        check(ignores_the_cotangent, cases=[case])
    case.write(tmp_path, bounds=["float32"])
    assert [fault for _, fault in store.check(tmp_path)] == [None]
    assert valid(manifest_of(tmp_path))
    assert "bound.float32.grad.logits" in load_file(tmp_path / "mine.safetensors")


@pytest.mark.parametrize(
    ("arguments", "function"),
    [
        (dict(logits=np.zeros((1, 2, 3)), labels=[[0, 9]]), "masked_lm"),
        (dict(logits=np.zeros((1, 2, 3), int), labels=[[0, 1]]), "masked_lm"),
        (dict(logits=np.zeros((1, 2, 3)), labels=[[0, 1]], sugar=1), "masked_lm"),
        (dict(logits=np.zeros((1, 2, 3)), labels=[[0, 1]], grad_output=[1.0, 2.0]), "masked_lm"),
        (dict(input=np.zeros(3)), "mse"),
    ],
)
def test_bad_arguments_are_refused_as_the_function_refuses_them(arguments, function):
    with pytest.raises((ValueError, TypeError)) as own:
        getattr(refloss, function)(**arguments)
    with pytest.raises((ValueError, TypeError)) as refused:
        golden_case(function, **arguments)
    assert (refused.type, str(refused.value)) == (own.type, str(own.value))


def test_what_is_no_part_of_a_case_is_refused():
    with pytest.raises(ValueError, match="unknown function tea"):
        golden_case("tea")
    with pytest.raises(TypeError, match="a golden case has no backend, grad_dtype"):
        golden_case("mse", input=[1.0], target=[2.0], grad_dtype="float64", backend="cpu")
    with pytest.raises(ValueError, match="question_answering has no loss of these arguments"):
        golden_case(
            "question_answering", start_logits=[[1.0]], end_logits=[[1.0]], start_positions=None, end_positions=None
        )


def test_a_mapped_file_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 12, dtype=np.float32))
    mapped, plain = np.load(tmp_path / "x.npy", mmap_mode="r"), np.linspace(1, 2, 12, dtype=np.float32)
    case = golden_case("mse", input=mapped, target=plain)
    assert np.shares_memory(case.case.inputs["input"], mapped)
    assert not np.shares_memory(case.case.inputs["target"], plain)
    writeable = np.load(tmp_path / "x.npy", mmap_mode="r+")
    assert not np.shares_memory(golden_case("mse", input=writeable, target=plain).case.inputs["input"], writeable)


def test_a_configuration_that_is_an_object_is_what_is_read_of_it(tmp_path):
    (scene,) = fresh("object_detection", 0, 1)
    config = SimpleNamespace(**scene.parameters["config"], name="a model", tokens=object())
    arguments = store.nested(scene.inputs)
    case = golden_case("object_detection", config=config, **arguments)
    known = set(FUNCTIONS["object_detection"].specification.parameters["config"].keys)
    assert case.parameters["config"] == {key: vars(config)[key] for key in known}
    add(tmp_path, case)
    assert [fault for _, fault in store.check(tmp_path)] == [None]
    logits, labels = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([[1, 0], [1, 1]])
    config = SimpleNamespace(problem_type="multi_label_classification", num_labels=2)
    case = golden_case("sequence_classification", pooled_logits=logits, labels=labels, config=config)
    assert case.parameters == {"problem_type": "multi_label_classification", "num_labels": 2}
    assert case.result.loss == refloss.sequence_classification(labels, logits, config).loss


def test_fresh_cases_follow_from_their_seed(run, tmp_path):  # noqa: F811
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        options = ["--seed", seed, "--count", 7, "--only", "mse,masked_lm"]
        assert run("golden", "write", tmp_path / folder, *options)[0] == 0
    a, b, c = (manifest_of(tmp_path / folder) for folder in "abc")
    assert valid(a)
    assert a == b
    assert (a["seed"], a["cases_per_function"], a["refloss"]) == (3, 7, refloss.__version__)
    assert [case["function"] for case in a["cases"]] == ["mse"] * 7 + ["masked_lm"] * 7
    assert len({case["id"] for case in a["cases"] + c["cases"]}) == 28
    assert not {case["sha256"] for case in a["cases"]} & {case["sha256"] for case in c["cases"]}
    assert a["corpus"] != c["corpus"]
    assert run("golden", "check", tmp_path / "a")[:2] == (0, "14 of 14 cases have the same bits\n")
    assert "seed" not in manifest_of_built_in(tmp_path)
    assert run("golden", "write", tmp_path / "e", "--seed", 3, "--cases", 7, "--only", "mse,masked_lm")[0] == 0
    assert manifest_of(tmp_path / "e") == a
    status, _, err = run("golden", "write", tmp_path / "d", "--count", 7)
    assert (status, "--seed" in err) == (2, True)


def test_some_of_the_cases_are_written(run, tmp_path):  # noqa: F811
    chosen = ["--only", "mse,masked_lm", "--dtypes", "float16,float64", "--cases", "mse-*-mean,masked_lm-*"]
    assert run("golden", "write", tmp_path / "some", *chosen)[0] == 0
    expected = [case for case in corpus({"mse", "masked_lm"}) if dtype_of(case) in ("float16", "float64")]
    ids = [case.id for case in expected if case.function != "mse" or case.id.endswith("-mean")]
    assert [case["id"] for case in manifest_of(tmp_path / "some")["cases"]] == ids
    assert len(expected) > len(ids) > 2


def test_a_fresh_case_is_the_same_whatever_is_drawn_beside_it(run, tmp_path):  # noqa: F811
    assert run("golden", "write", tmp_path / "all", "--only", "mse", "--seed", 5, "--count", 9)[0] == 0
    assert (
        run("golden", "write", tmp_path / "some", "--only", "mse", "--seed", 5, "--count", 2, "--dtypes", "float16")[0]
        == 0
    )
    assert run("golden", "write", tmp_path / "one", "--only", "mse", "--seed", 5, "--cases", "mse-seed5-6")[0] == 0
    every = {case["id"]: case["sha256"] for case in manifest_of(tmp_path / "all")["cases"]}
    some = {case["id"]: case["sha256"] for case in manifest_of(tmp_path / "some")["cases"]}
    assert list(some) == ["mse-seed5-2", "mse-seed5-6"]
    assert some.items() <= every.items()
    (one,) = manifest_of(tmp_path / "one")["cases"]
    assert one["sha256"] == every["mse-seed5-6"]
    for folder, count in (("all", 9), ("some", 2), ("one", 1)):
        assert run("golden", "check", tmp_path / folder)[:2] == (0, f"{count} of {count} cases have the same bits\n")


def manifest_of_built_in(tmp_path):
    store.write(tmp_path / "built-in", {"masked_lm"})
    return manifest_of(tmp_path / "built-in")


def test_a_corpus_has_the_same_name_in_any_order(tmp_path):
    entries = manifest_of_built_in(tmp_path)["cases"]
    name = manifest_of(tmp_path / "built-in")["corpus"]
    mixed = random.Random(0).sample(entries, len(entries))
    assert mixed != entries
    assert manifest.corpus_id(mixed) == name
    assert manifest.corpus_id(entries[1:]) != name
    assert manifest.corpus_id([*entries[1:], entries[0] | {"sha256": "0" * 64}]) != name


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.pop("format"),
        lambda made: made.update(format=2),
        lambda made: made.update(corpus="tea"),
        lambda made: made.update(cases=[]),
        lambda made: made["cases"][0].pop("grad_output"),
        lambda made: made["cases"][0].update(sha256="0"),
        lambda made: made["cases"][0].update(file="../x.safetensors"),
        lambda made: made["cases"][0].update(grad_output="tea"),
    ],
)
def test_the_schema_tells_what_is_no_manifest(change):
    entry = {"id": "a", "file": "a.safetensors", "sha256": "0" * 64, "function": "mse", "parameters": {}}
    made = {"format": 1, "refloss": "1", "cases": [entry | {"grad_output": 1}], "later": True}
    assert valid(made)
    change(made)
    with pytest.raises(jsonschema.ValidationError):
        valid(made)


def test_numbers_that_json_does_not_have(tmp_path):
    value = {"a": [math.inf, -math.inf, 1.5, None, True, "word"], "b": {"c": math.nan, "d": np.float32(2)}}
    written = manifest.encoded(value, "x")
    assert written == {"a": ["Infinity", "-Infinity", 1.5, None, True, "word"], "b": {"c": "NaN", "d": 2.0}}
    read = manifest.decoded(json.loads(json.dumps(written, allow_nan=False)))
    assert read["a"] == value["a"]
    assert math.isnan(read["b"]["c"])
    with pytest.raises(TypeError, match=r"x\['a'\]\[1\] is of type object"):
        manifest.encoded({"a": [1, object()]}, "x")
    add(tmp_path, golden_case("huber", input=[1.0], target=[4.0], delta=math.inf, grad_output=-math.inf))
    made = manifest_of(tmp_path)
    assert valid(made)
    assert (made["cases"][0]["parameters"], made["cases"][0]["grad_output"]) == ({"delta": "Infinity"}, "-Infinity")
    assert [fault for _, fault in store.check(tmp_path)] == [None]
    case, _ = store.read_case(tmp_path, made["cases"][0])
    assert (case.parameters, case.grad_output) == ({"delta": math.inf}, -math.inf)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64], ids=lambda dtype: dtype.__name__)
def test_bounds_in_a_file_are_all_that_a_judge_needs(tmp_path, dtype):
    logits, labels = arrays_of(dtype)
    case = golden_case("masked_lm", logits=logits, labels=labels, grad_output=0.7)
    store.add(tmp_path, case.case, case.result, written_beside(("float32", "bfloat16"), tmp_path))
    tensors = load_tensors(tmp_path / "masked_lm.safetensors")
    kind = np.float64 if dtype is np.float64 else np.float32
    assert {name for name in tensors if name.startswith("bound.") and "intermediate" not in name} == {
        f"bound.{each}.{name}" for each in ("float32", "bfloat16") for name in ("loss", "grad.logits")
    }
    bound = tensors["bound.float32.grad.logits"]
    assert bound.dtype == kind
    assert (bound <= tensors["bound.bfloat16.grad.logits"]).all()
    # The right answer in wider types: what a candidate rounds to its own.
    exact = refloss.masked_lm(np.float64(logits), labels, grad_output=0.7).grads["logits"]
    right = np.float64(tensors.get("exact.grad.logits", tensors["expected.grad.logits"]))
    assert ("exact.grad.logits" in tensors) == (dtype is ml_dtypes.bfloat16)
    assert np.abs(right - exact).max() < 1e-7
    rounded = np.float64(exact.astype(dtype))
    assert (np.abs(rounded - right) <= bound).all()
    off = np.float64((exact * 1.02).astype(dtype))
    assert not (np.abs(off - right) <= bound).all()
    if dtype is np.float32:
        the_judge_draws_the_same_line(tmp_path, case.result, bound)


def the_judge_draws_the_same_line(tmp_path, result, bound):
    """One float32 further than the last that the file allows is the first that the judge does not."""
    right = result.grads["logits"]
    middle = np.unravel_index(np.argmax(np.abs(right)), right.shape)
    last = right[middle]
    while abs(np.float64(further := np.nextafter(last, np.float32(np.inf))) - right[middle]) <= bound[middle]:
        last = further
    assert last != right[middle]
    (tmp_path / "candidate").mkdir()
    for value, passed in ((last, True), (further, False)):
        gradient = right.copy()
        gradient[middle] = value
        candidate = {"loss": np.asarray(result.loss), "grad.logits": gradient}
        save_file(candidate, tmp_path / "candidate" / "masked_lm.safetensors")
        assert judge_folders(tmp_path, tmp_path / "candidate").passed == passed


def test_bounds_are_rounded_up():
    from refloss.testing.judging.allowances import _rounded_up

    values = np.array([0.0, 1e-60, 1.0, 1.0 + 2.0**-40, 1e300, np.inf])
    assert _rounded_up(values, np.dtype(np.float32)).tolist() == [0.0, 2.0**-149, 1.0, 1.0 + 2.0**-23, np.inf, np.inf]
    assert _rounded_up(values, np.dtype(np.float64)).tolist() == values.tolist()
