"""Arrays and functions that are judged in memory."""

import copy
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss.cases.source import DTYPES, Case
from refloss.files import nested
from refloss.golden.corpus import cases_of, corpus
from refloss.golden.store import evaluate
from refloss.registry import FUNCTIONS
from refloss.testing import MismatchError, assert_matches, check
from refloss.testing.judging import judge
from refloss.testing.judging.callables import GoldenCase, listeners, select
from refloss.testing.judging.called import called, changed_since
from tests.test_arrays import Convertible, Detachable, Producer

PLAIN = ("mse", "causal_lm", "cross_entropy", "object_detection")


def exact(function):
    """An implementation without a fault: refloss itself."""

    def fn(inputs, parameters, cotangent):
        result = FUNCTIONS[function].call(**inputs, **parameters, grad_output=cotangent)
        return result.loss, result.grads, result.components

    return fn


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    logits = (generator.standard_normal((2, 5, 11)) * 4).astype(np.float32)
    labels = generator.integers(11, size=(2, 5))
    labels[1, 3:] = -100
    return logits, labels


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_result_knows_what_was_asked(function):
    for case in corpus({function})[3:6]:
        result = evaluate(case)
        again = called(result)
        assert again.function == function
        assert again.parameters == case.parameters
        assert np.array_equal(again.grad_output, case.grad_output)
        assert again.inputs.keys() == case.inputs.keys()
        for name, value in case.inputs.items():
            assert again.inputs[name].dtype == value.dtype
            assert np.shares_memory(again.inputs[name], value) or not value.size
        assert not changed_since(again, result)


def test_whichever_way_it_was_asked(data):
    logits, labels = data
    for result in (
        refloss.causal_lm(logits, labels, 11, np.float32(7), grad_output=np.array(-2.0)),
        refloss.LOSS_MAPPING["ForCausalLM"](
            logits=Producer(logits),
            labels=labels,
            num_items_in_batch=np.array(7),
            vocab_size=11,
            grad_output=-2.0,
            return_dict=True,
        ),
    ):
        case = called(result)
        assert case.inputs.keys() == {"logits", "labels"}
        assert case.parameters == {"vocab_size": 11, "num_items_in_batch": 7.0}
        assert case.grad_output == -2.0
        assert isinstance(case.grad_output, float)


def test_lists_are_arrays():
    case = called(refloss.cross_entropy([[1, 2], [3, 4]], [0, 1]))
    assert [value.dtype for value in case.inputs.values()] == [np.float64, np.int64]
    case = called(refloss.cross_entropy([[1, 2], [3, 4]], [[0, 1], [1, 0]]))
    assert [value.dtype for value in case.inputs.values()] == [np.float64, np.float64]
    assert [value.dtype for value in called(refloss.mse([1], [2])).inputs.values()] == [np.float64, np.float64]


def test_lists_of_arrays_are_arrays_or_parts():
    given = nested(corpus({"object_detection"})[4].inputs)
    given["outputs_class"] = tuple(given["outputs_class"])
    parameters = corpus({"object_detection"})[4].parameters
    result = refloss.object_detection(**given, **parameters)
    matching = refloss.object_detection(**given, **parameters, assignment=result.intermediates)
    for each in (result, matching):
        case = called(each)
        assert case.inputs["outputs_class"].ndim == 4
        assert "labels.0.boxes" in case.inputs
        assert not changed_since(case, each)
    assert called(matching).parameters["assignment"] is result.intermediates


def test_cotangents_of_components():
    case = corpus({"object_detection"})[0]
    wanted = {"loss_ce": np.float32(2.0), "loss_bbox": 0.5}
    result = refloss.object_detection(**nested(case.inputs), **case.parameters, grad_output=wanted)
    assert called(result).grad_output == wanted


def test_copies_and_pickles_do_not_take_the_inputs_along(data):
    result = refloss.causal_lm(*data)
    assert result.call is not None
    assert "call" not in repr(result)
    for other in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other.loss == result.loss
        with pytest.raises(ValueError, match="does not know what was asked"):
            assert_matches(other, loss=result.loss)


@pytest.mark.parametrize("wrap", [Producer, Convertible, Detachable, np.asarray])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_arrays_of_any_framework(data, wrap, dtype):
    logits, labels = data
    result = refloss.causal_lm(wrap(logits.astype(dtype)), wrap(labels), grad_output=-2.0)
    verdict = assert_matches(result, loss=wrap(np.asarray(result.loss)), grads={"logits": wrap(result.grads["logits"])})
    assert verdict.passed
    assert [(tensor.name, tensor.passed) for tensor in verdict.tensors] == [("loss", True), ("grad.logits", True)]
    with pytest.raises(MismatchError):
        assert_matches(result, grads={"logits": wrap(-result.grads["logits"])})


class OnADevice(Producer):
    """As a tensor of torch on a device that nobody else reads."""

    def __init__(self, array):
        super().__init__(array, (8, 0))

    def detach(self):
        return self

    def cpu(self):
        return Producer(self.array)


def test_tensors_of_torch_come_from_any_device(data):
    result = refloss.causal_lm(*data)
    assert_matches(result, grads={"logits": OnADevice(result.grads["logits"])})


def test_a_mismatch_says_what_is_where(data):
    result = refloss.causal_lm(*data)
    wrong = result.grads["logits"].copy()
    wrong[1, 2, 3] += 1.0
    with pytest.raises(AssertionError) as raised:
        assert_matches(result, loss=result.loss, grads={"logits": wrong})
    error = raised.value
    lines = str(error).splitlines()
    assert lines[0].startswith("0 of 1 case")
    assert lines[2] == "causal_lm"
    assert " ".join(lines[3].split()) == "tensor ulp error ÷ bound what is wrong, and where most"
    assert lines[4].split() == ["loss", "0", "0", "passes"]
    assert lines[5].split()[0] == "grad.logits"
    assert f"1 of {wrong.size} elements" in lines[5]
    assert "at [1, 2, 3]" in lines[5]
    assert error.judgement.cases[0].tensors[1].worst.got == wrong[1, 2, 3]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_only_what_is_given_is_judged(data):
    result = refloss.mse(*np.float32([[1, 2], [3, 5]]))
    assert [tensor.name for tensor in assert_matches(result, grads={"target": result.grads["target"]}).tensors] == [
        "grad.target"
    ]
    for given in ({}, {"grads": {}}):
        with pytest.raises(TypeError, match="nothing to judge"):
            assert_matches(result, **given)
    with pytest.raises(ValueError, match=r"unknown tensor grad\.weight; there are loss, grad\.input, grad\.target"):
        assert_matches(result, grads={"weight": 1.0, "input": result.grads["input"]})
    with pytest.raises(ValueError, match=r"unknown tensor component\.loss_ce"):
        assert_matches(result, components={"loss_ce": 1.0})
    with pytest.raises(ValueError, match=r"unknown tensor grad\.logits; there are loss$"):
        assert_matches(refloss.causal_lm(*data, grad=False), grads={"logits": data[0]})
    with pytest.raises(TypeError, match="grads is of type ndarray; expected a mapping"):
        assert_matches(result, grads=result.grads["input"])


def test_what_has_no_gradient_is_missing(data):
    result = refloss.causal_lm(*data)
    with pytest.raises(MismatchError, match="missing"):
        assert_matches(result, grads={"logits": None})


def test_dtypes_and_shapes_are_told(data):
    logits, labels = data
    result = refloss.causal_lm(logits.astype(ml_dtypes.bfloat16), labels)
    with pytest.raises(MismatchError, match="dtype float32 instead of bfloat16"):
        assert_matches(result, grads={"logits": result.grads["logits"].astype(np.float32)})
    with pytest.raises(MismatchError, match=r"shape \[5, 2, 11\] instead of \[2, 5, 11\]"):
        assert_matches(result, grads={"logits": result.grads["logits"].swapaxes(0, 1)})
    wide = refloss.causal_lm(logits.astype(ml_dtypes.bfloat16), labels, grad_dtype=np.float32)
    assert_matches(wide, grads=wide.grads)


def test_the_type_that_is_computed_in(data):
    logits, labels = data
    result = refloss.causal_lm(logits.astype(np.float64), labels)
    near = result.grads["logits"] * (1 + 2.0**-22)
    assert_matches(result, grads={"logits": near}, compute_dtype="float32")
    with pytest.raises(MismatchError):
        assert_matches(result, grads={"logits": near})
    with pytest.raises(ValueError, match="compute_dtype"):
        assert_matches(result, grads={"logits": near}, compute_dtype="float8")
    with pytest.raises(
        ValueError, match=r"unknown compute_dtype float8 \(did you mean 'float64'\?\); there are float64, float32"
    ):
        check(exact("mse"), function="mse", compute_dtype="float8")


def test_what_has_no_error_model_does_not_pass(data, monkeypatch):
    monkeypatch.setattr(judge, "bounds", lambda *arguments: {})
    result = refloss.causal_lm(*data)
    with pytest.raises(ValueError, match="loss: not judged, for there is no error model"):
        assert_matches(result, loss=result.loss)


def test_inputs_that_have_changed_since(data):
    logits, labels = data
    result = refloss.causal_lm(logits, labels)
    logits[0, 0] = result.grads["logits"][0, 0]
    with pytest.raises(ValueError, match="the inputs have changed since"):
        assert_matches(result, grads=result.grads)


@pytest.mark.parametrize("function", PLAIN)
def test_an_exact_function_passes(function):
    judgement = check(exact(function), function=function)
    assert judgement.passed
    assert [case.id for case in judgement.cases] == [case.id for case in corpus({function})]
    assert all(tensor.passed for case in judgement.cases for tensor in case.tensors)
    names = {tensor.name for case in judgement.cases for tensor in case.tensors}
    assert {"loss", f"grad.{FUNCTIONS[function].differentiable[0]}"} <= names


def test_failing_cases_are_named_and_the_rest_goes_on():
    def fn(inputs, parameters, cotangent):
        if inputs["input"].dtype == np.float16:
            raise RuntimeError("no such type here")
        loss, grads, _ = exact("mse")(inputs, parameters, cotangent)
        return loss, {name: np.abs(value) for name, value in grads.items()}

    heard = []
    listeners.append(heard.append)
    try:
        with pytest.raises(MismatchError) as raised:
            check(fn, function="mse", cases=["mse-float*-mean", "mse-hit"])
    finally:
        listeners.remove(heard.append)
    outcomes = {case.id: case.passed for case in raised.value.judgement.cases}
    assert outcomes == {
        "mse-float32-mean": False,
        "mse-float16-mean": False,
        "mse-float64-mean": False,
        "mse-hit": True,
    }
    assert [case.id for case in heard] == list(outcomes)
    message = str(raised.value)
    assert message.startswith("1 of 4 cases")
    assert "mse-float16-mean\n  RuntimeError: no such type here" in message
    assert str(raised.value.__cause__) == "no such type here"


def test_a_mismatch_of_several_cases_says_first_what_is_wrong():
    def fn(inputs, parameters, cotangent):
        loss, grads, _ = exact("mse")(inputs, parameters, cotangent)
        return loss, {name: -value for name, value in grads.items()}

    with pytest.raises(MismatchError) as raised:
        check(fn, cases=[f"mse-{dtype}-mean" for dtype in DTYPES])
    summary, diagnosis, *_ = str(raised.value).splitlines()
    assert summary == "0 of 4 cases passed, 4 failed"
    assert diagnosis.startswith("mse: ")
    assert "wrong sign" in diagnosis
    assert "4 of 4 failing cases" in diagnosis
    (found,) = raised.value.judgement.diagnoses
    assert (found.function, len(found.cases), found.failing) == ("mse", 4, 4)


def test_what_is_not_answered_is_not_judged():
    def fn(inputs, parameters, cotangent):
        if parameters.get("reduction", "mean") != "mean":
            raise NotImplementedError(f"reduction {parameters['reduction']}")
        return exact("mse")(inputs, parameters, cotangent)

    judgement = check(fn, function="mse")
    absent = {case.id: case.message for case in judgement.cases if case.passed is None}
    assert absent["mse-sum"] == "not answered: reduction sum"
    assert set(absent.values()) == {"not answered: reduction sum", "not answered: reduction none"}
    assert judgement.passed
    assert len(judgement.judged) == len(judgement.cases) - len(absent) > 3
    with pytest.raises(MismatchError, match=r"nothing was judged: .*\nmse-sum: not answered: reduction sum") as raised:
        check(fn, cases="mse-sum")
    assert raised.value.judgement.exit_status == 2


def test_a_judgement_tells_of_what_it_was():
    judgement = check(exact("mse"), cases=["mse-sum", "mse-hit"], components=())
    assert judgement.corpus == f"built-in, refloss {refloss.__version__}"
    assert judgement.subject.endswith("fn")
    assert 0 < sum(case.seconds for case in judgement.cases) <= judgement.seconds
    assert judgement.cases[0].parameters == {"reduction": "sum", "grad_output": corpus({"mse"})[4].grad_output}
    assert judgement.cases[0].shapes == {"input": "float32 [4, 7]", "target": "float32 [4, 7]"}
    inputs = {"input": np.float32([1, 2]), "target": np.float32([0, 4])}
    own = Case("mine", "mse", inputs, {"reduction": "none"}, np.ones(2, np.float32))
    judgement = check(exact("mse"), cases=["mse-sum", own])
    assert judgement.corpus == f"built-in, refloss {refloss.__version__}, and 1 other"
    assert judgement.cases[1].parameters == {"reduction": "none", "grad_output": "float32 [2]"}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, r"a float returned; expected \(loss, grads\) or \(loss, grads, components\)"),
        ((1.0,), "1 values returned"),
        ((1.0, 2.0), "grads is of type float; expected a mapping"),
        ((1.0, None), r"grad\.input +missing"),
        ((None, {}), "loss +missing"),
        ((1.0, {"weights": np.ones(3)}), r"grad\.weights +extra"),
        ((1.0, {}, {"loss_ce": 1.0}), r"component\.loss_ce +extra"),
    ],
)
def test_what_comes_back_may_be_anything(returned, message):
    with pytest.raises(MismatchError, match=message):
        check(lambda inputs, parameters, cotangent: returned, cases="mse-sum")


def test_gradients_that_are_asked_for():
    def fn(inputs, parameters, cotangent):
        loss, grads, _ = exact("mse")(inputs, parameters, cotangent)
        return loss, {"input": grads["input"], "other": 1.0}

    assert check(fn, function="mse", grads="input").passed
    assert check(lambda *arguments: (fn(*arguments)[0], None), function="mse", grads=()).passed
    with pytest.raises(MismatchError, match=r"grad\.target +missing"):
        check(fn, function="mse", grads=["input", "target"])
    with pytest.raises(ValueError, match=r"unknown grad inputs \(did you mean 'input'\?\); there are input, target"):
        check(fn, cases="mse-sum", grads=["inputs"])


def test_components_that_are_asked_for():
    def fn(inputs, parameters, cotangent):
        loss, grads, components = exact("object_detection")(inputs, parameters, cotangent)
        return loss, grads, {"loss_ce": components["loss_ce"]}

    cases = ["object_detection-float32"]
    judgement = check(lambda *arguments: fn(*arguments)[:2], cases=cases)
    assert not any(tensor.name.startswith("component.") for tensor in judgement.cases[0].tensors)
    assert check(fn, cases=cases, components="loss_ce").passed
    for function, components in ((fn, None), (lambda *arguments: fn(*arguments)[:2], ["loss_bbox"])):
        with pytest.raises(MismatchError, match=r"component\.loss_bbox +missing"):
            check(function, cases=cases, components=components)
    with pytest.raises(
        ValueError, match=r"unknown component loss \(did you mean 'loss_ce'\?\); there are cardinality_error, loss_bbox"
    ):
        check(fn, cases=cases, components="loss")


def test_nothing_that_a_function_does_to_its_arguments_matters():
    def fn(inputs, parameters, cotangent):
        answer = exact("causal_lm")(inputs, dict(parameters), cotangent)
        inputs["logits"][...] = 0.0
        inputs.clear()
        parameters.clear()
        return answer

    check(fn, function="causal_lm")
    for case, fresh in zip(select("causal_lm"), corpus({"causal_lm"}), strict=True):
        assert case.parameters == fresh.parameters
        assert np.array_equal(case.inputs["logits"], fresh.inputs["logits"], equal_nan=True)


def narrow(array):
    """As a framework without 64 bits."""
    kinds = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}
    return Producer(array.astype(kinds.get(array.dtype, array.dtype)))


def widen(value):
    return value.array if isinstance(value, Producer) else value


def is_lost(value):
    """Whether 32 bits do not hold it."""
    if value.dtype.kind in "iu":
        return not np.array_equal(value.astype(np.int32), value)
    return value.dtype == np.float64


def test_a_framework_without_64_bits():
    def fn(inputs, parameters, cotangent):
        assert all(isinstance(value, Producer) for value in inputs.values())
        given = {name: value.array for name, value in inputs.items()}
        assert given["target"].dtype != np.int64
        loss, grads, _ = exact("cross_entropy")(given, parameters, widen(cotangent))
        return Producer(np.asarray(loss)), {name: Producer(value) for name, value in grads.items()}

    for from_native in (None, widen):
        judgement = check(fn, function="cross_entropy", to_native=narrow, from_native=from_native)
        absent = [case for case in judgement.cases if case.passed is None]
        wide = {case.id for case in cases_of("cross_entropy") if any(map(is_lost, case.inputs.values()))}
        assert {case.id for case in absent} == wide
        assert absent[0].message == "not judged: to_native makes float32 of logits (float64)"
    with pytest.raises(MismatchError, match=r"nothing was judged.*\ncross_entropy-float64-mean: not judged: to_native"):
        check(fn, function="cross_entropy", dtypes="float64", to_native=narrow)


def test_cotangents_are_judged_as_they_came():
    """Rounded to float32 a cotangent is another; who computes in float64 with it is right."""

    def rounded(array):
        return array.astype(np.float32) if array.ndim == 1 and array.dtype == np.float64 else array

    def fn(inputs, parameters, cotangent):
        assert cotangent.dtype == np.float32
        return exact("cross_entropy")(inputs, parameters, cotangent)

    inputs = {"logits": np.random.default_rng(0).standard_normal((3, 4)), "target": np.array([1, 2, 0])}
    own = Case("own", "cross_entropy", inputs, {"reduction": "none"}, np.array([0.1, 0.7, -0.3]))
    assert check(fn, cases=own, to_native=rounded).passed


def test_lists_and_mappings_are_handed_over_whole():
    seen = []

    def fn(*arguments):
        seen.append(arguments[0])
        raise RuntimeError("that is all")

    with pytest.raises(MismatchError, match="that is all"):
        check(fn, cases="object_detection-float32", to_native=Producer)
    assert isinstance(seen[0]["labels"][0]["boxes"], Producer)


def test_cases_of_ones_own():
    inputs = {"input": np.float32([1, 2]), "target": np.float32([0, 4])}
    own = Case("mine", "mse", inputs, {"reduction": "sum"}, 3.0)
    judgement = check(exact("mse"), cases=own)
    assert [case.id for case in judgement.cases] == ["mine"]
    assert len(check(exact("mse"), cases=["mse-sum", own]).cases) == 2


def test_which_cases():
    ids = [case.id for case in corpus({"mse"})]
    for chosen in (select("mse"), select(["mse"], "*"), select(cases="mse-*"), select(["mse"], ids)):
        assert [case.id for case in chosen] == ids
    assert [case.id for case in select(["mse", "l1"], ["*1-sum", "mse-hit", "mse-h*"])] == ["mse-hit", "l1-sum"]
    assert {case.inputs["input"].dtype for case in select("mse", dtypes=["float16", "bfloat16"])} == {
        np.dtype(np.float16),
        np.dtype(ml_dtypes.bfloat16),
    }
    for arguments, message in (
        ({}, "neither function nor cases"),
        ({"function": "mea"}, "unknown function mea; there are mse"),
        (
            {"function": "mse", "dtypes": "float8"},
            r"unknown dtype float8 \(did you mean 'float64'\?\); there are float32",
        ),
        (
            {"function": "mse", "cases": ["mse-sum", "mse-some"]},
            r"no case is called mse-some \(did you mean 'mse-sum'\?\); there are mse-float32",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            select(**arguments)


def test_a_case_for_a_test():
    case = GoldenCase(corpus({"causal_lm"})[0])
    assert (case.id, case.function, case.grad_output) == ("causal_lm-float32", "causal_lm", -0.625)
    assert repr(case) == "GoldenCase('causal_lm-float32')"
    loss, grads, _ = exact("causal_lm")(case.inputs, case.parameters, case.grad_output)
    case.inputs["logits"][...] = 7.0
    assert case.result is case.result
    assert case.assert_matches(loss=loss, grads=grads).id == "causal_lm-float32"
    with pytest.raises(MismatchError, match="causal_lm-float32"):
        case.assert_matches(loss=loss + 1.0)


def test_import_is_light():
    program = (
        "import sys, refloss\n"
        "refloss.testing.Judgement\n"
        "heavy = {'numpy', 'numba', 'ml_dtypes', 'hypothesis', 'rich', 'pytest'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "print(set(refloss.testing.__all__) <= set(dir(refloss.testing)), 'testing' in dir(refloss))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "True True"]


def test_public_names():
    for name in refloss.testing.__all__:
        value = getattr(refloss.testing, name)
        assert name.isupper() or value.__doc__, name
    with pytest.raises(AttributeError, match=r"module 'refloss\.testing' has no attribute 'nothing'"):
        _ = refloss.testing.nothing
