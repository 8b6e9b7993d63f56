"""Golden files: the format that other people's code reads."""

import hashlib
import json
import re
import shutil

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

import refloss
from refloss.files import flattened, nested
from refloss.golden import corpus, store
from refloss.golden.manifest import SCHEMA
from refloss.registry import FUNCTIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "made" / "here"
    store.write(path)
    return path


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_every_function_has_its_cases():
    assert {case.function for case in corpus.corpus()} == set(FUNCTIONS)
    for function in FUNCTIONS:
        cases = corpus.corpus({function})
        assert 15 <= len(cases) <= 110
        assert {case.function for case in cases} == {function}
        assert sum(np.any(np.asarray(case.grad_output) != 1) for case in cases) >= 8
        dtypes = {case.inputs[FUNCTIONS[function].required[0]].dtype.name for case in cases}
        assert dtypes == {"float64", "float32", "float16", "bfloat16"}
        # Lists are taken apart: labels.0.boxes is part of labels.
        given = {name.partition(".")[0] for case in cases for name in (*case.parameters, *case.inputs)}
        assert given == {*FUNCTIONS[function].required, *FUNCTIONS[function].optional, *FUNCTIONS[function].parameters}


def test_the_manifest(folder):
    manifest = manifest_of(folder)
    assert (manifest["format"], manifest["refloss"]) == (1, refloss.__version__)
    jsonschema.validate(manifest, json.loads(SCHEMA.read_text()))
    assert re.fullmatch("[0-9a-f]{16}", manifest["corpus"])
    ids = [entry["id"] for entry in manifest["cases"]]
    assert len(set(ids)) == len(ids) == len(corpus.corpus())
    for entry in manifest["cases"]:
        assert hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        *(entry["file"] for entry in manifest["cases"]),
    }


def test_a_file_can_be_replayed_with_what_it_says(folder):
    for entry in manifest_of(folder)["cases"]:
        tensors = load_file(folder / entry["file"])
        inputs = {name[len("input.") :]: value for name, value in tensors.items() if name.startswith("input.")}
        grad_output = tensors.get("grad_output", entry["grad_output"])
        if isinstance(grad_output, dict):
            grad_output = {
                name: tensors[f"grad_output.{name}"] if value is None else value for name, value in grad_output.items()
            }
        result = getattr(refloss, entry["function"])(**nested(inputs), **entry["parameters"], grad_output=grad_output)
        assert np.array_equal(result.loss, tensors["expected.loss"], equal_nan=True)
        assert {name for name in tensors if name.startswith("expected.grad.")} == {
            f"expected.grad.{name}" for name in result.grads
        }
        assert set(result.grads) <= set(FUNCTIONS[entry["function"]].differentiable)
        for name, gradient in result.grads.items():
            expected = tensors[f"expected.grad.{name}"]
            assert expected.dtype == inputs[name].dtype
            assert expected.shape == inputs[name].shape
            assert expected.tobytes() == gradient.tobytes()
        assert ("grad_output" in tensors) == (entry["grad_output"] is None)


def test_every_nan_in_a_file_has_the_same_bits(folder):
    """Which NaN 0/0 is differs between processors."""
    undefined = 0
    for entry in manifest_of(folder)["cases"]:
        for name, tensor in load_file(folder / entry["file"]).items():
            if name.startswith("expected.") and tensor.dtype.kind in "fV":
                odd = tensor[np.isnan(tensor)]
                undefined += odd.size
                assert odd.tobytes() == np.full(odd.shape, np.nan).astype(odd.dtype).tobytes(), (entry["id"], name)
    assert undefined > 0


def test_files_are_the_same_from_run_to_run(folder, tmp_path):
    store.write(tmp_path)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_only_some_functions(tmp_path):
    count = store.write(tmp_path, {"masked_lm"})
    assert {entry["function"] for entry in manifest_of(tmp_path)["cases"]} == {"masked_lm"}
    assert count == len(manifest_of(tmp_path)["cases"])
    with pytest.raises(ValueError, match=r"unknown function tea; there are mse, l1, .*cross_entropy, .*causal_lm"):
        store.write(tmp_path, {"tea", "masked_lm"})


def test_check_finds_the_same_bits(folder):
    assert all(fault is None for _, fault in store.check(folder))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Two functions' cases: as many as tests need that change some."""
    path = tmp_path_factory.mktemp("few")
    store.write(path, {"masked_lm", "causal_lm"})
    return path


@pytest.fixture
def copy(few, tmp_path):
    shutil.copytree(few, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(copy, case_id, change):
    """Change a case's tensors, with a manifest that agrees."""
    from safetensors.numpy import save_file

    manifest = manifest_of(copy)
    entry = next(entry for entry in manifest["cases"] if entry["id"] == case_id)
    tensors = load_file(copy / entry["file"])
    change(tensors)
    save_file(tensors, copy / entry["file"])
    entry["sha256"] = hashlib.sha256((copy / entry["file"]).read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))


def faults(copy):
    return {case: fault for case, fault in store.check(copy) if fault is not None}


def test_check_finds_one_changed_bit(copy):
    def change(tensors):
        gradient = tensors["expected.grad.logits"]
        gradient[0, 0, 0] = np.nextafter(gradient[0, 0, 0], np.float32(1))

    rewrite(copy, "masked_lm-float32", change)
    assert faults(copy) == {"masked_lm-float32": "other bits in expected.grad.logits"}


def test_check_finds_missing_and_additional_tensors(copy):
    rewrite(copy, "masked_lm-float32", lambda tensors: tensors.pop("expected.loss"))
    rewrite(copy, "masked_lm-float64", lambda tensors: tensors.update({"expected.extra": np.zeros(1)}))
    assert faults(copy) == {
        "masked_lm-float32": "other bits in expected.loss",
        "masked_lm-float64": "other bits in expected.extra",
    }


def test_check_finds_changed_and_missing_files(copy):
    path = copy / "causal_lm-float32.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (copy / "causal_lm-float16.safetensors").unlink()
    assert faults(copy) == {
        "causal_lm-float32": "causal_lm-float32.safetensors: differs from its checksum in the manifest",
        "causal_lm-float16": "causal_lm-float16.safetensors: no such file",
    }


def test_check_names_unusable_cases(copy):
    rewrite(copy, "masked_lm-float32", lambda tensors: tensors.update({"input.labels": np.full((2, 9), 99)}))
    manifest = manifest_of(copy)
    manifest["cases"][0]["function"] = "tea"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    found = faults(copy)
    assert found[manifest["cases"][0]["id"]] == "unknown function 'tea'"
    assert found["masked_lm-float32"].startswith("labels[0, 0] = 99 is outside [0, 17)")


def entry_of(name, file):
    return {"id": name, "file": file, "sha256": "", "function": "mse", "parameters": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no golden files here: there is no manifest.json"),
        ("{", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"format": 1}', "not a manifest"),
        ('{"format": 2, "cases": []}', "has format 2; this version of refloss reads format 1"),
        ('{"format": 1, "cases": [{"id": "x"}]}', "not a manifest: a case lacks an entry"),
        ('{"format": 1, "cases": ["x"]}', "not a manifest: a case lacks an entry"),
        ('{"format": 1, "cases": {}}', "not a manifest: a case lacks an entry"),
        ('{"format": 1, "cases": []}', "has no cases"),
        (
            '{"format": 1, "cases": [{"id": "x", "file": "../x", "sha256": "", "function": "mse", "parameters": {}}]}',
            "names a file elsewhere",
        ),
        ('{"a":' * 100000, "not a manifest: RecursionError"),
        ("\udcff", "not a manifest: UnicodeDecodeError"),
        (f'{{"format": {"1" * 5000}}}', "not a manifest: ValueError"),
        (
            json.dumps({"format": 1, "cases": [entry_of("a", "a.x"), entry_of("b", "b.x"), entry_of("a", "c.x")]}),
            "2 cases have the id 'a'",
        ),
        (
            json.dumps({"format": 1, "cases": [entry_of("a", "a.x"), entry_of("b", "a.x"), entry_of("c", "a.x")]}),
            "3 cases have the file 'a.x'",
        ),
    ],
)
def test_bad_manifests(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        list(store.check(tmp_path))


def test_lists_and_mappings_are_taken_apart_and_put_together():
    value = {"labels": [{"boxes": 1, "masks": 2}, {"boxes": 3}], "logits": 4, "label_maps": (5, 6)}
    flat = {key: part for name, each in value.items() for key, part in flattened(name, each).items()}
    assert flat == {
        "labels.0.boxes": 1,
        "labels.0.masks": 2,
        "labels.1.boxes": 3,
        "logits": 4,
        "label_maps.0": 5,
        "label_maps.1": 6,
    }
    assert nested(flat) == value | {"label_maps": [5, 6]}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"labels.0.boxes": 1, "labels.2.boxes": 2}, "labels has parts 0, 2; expected 0, 1"),
        ({"labels": 1, "labels.0": 2}, "labels.0: labels is a tensor itself"),
    ],
)
def test_names_that_do_not_fit_together(tensors, message):
    with pytest.raises(ValueError, match=message):
        nested(tensors)


def test_expected_tensors_have_margins_and_nothing_else_that_is_computed_later():
    detection, logits = (corpus.corpus({name})[0] for name in ("object_detection", "bce_with_logits"))
    result = store.evaluate(detection)
    names = set(store.expected_tensors(result))
    assert "expected.intermediate.margin" in names
    assert names >= {f"expected.intermediate.{name}" for name in result.intermediates if name.startswith("margin")}
    result = store.evaluate(logits)
    assert not any("intermediate" in name for name in store.expected_tensors(result))
    assert set(result.intermediates.later) == {"losses", "probabilities"}


def test_a_golden_case_of_a_head_that_matches_states_its_margins(folder):
    entries = [entry for entry in manifest_of(folder)["cases"] if entry["function"] == "object_detection"]
    for entry in entries:
        tensors = load_file(folder / entry["file"]) if "bfloat16" not in entry["id"] else {}
        layers = [name for name in tensors if name.startswith("expected.intermediate.assignment")]
        for name in layers:
            margin = tensors[name.replace("assignment", "margin")]
            assert (margin >= 0).all()
            # Far enough from a tie that no arithmetic of a type decides the matching.
            assert (margin > 1e-3).all(), entry["id"]
