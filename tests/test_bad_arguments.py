"""Whatever is given for any argument of any function that cannot be one: an error that names it, before anything runs.

Every function, and every parameter of its signature, by the registry; what a few arguments are told in tests/
test_bad_input.py.
"""

import inspect
import re

import ml_dtypes
import numpy as np
import pytest

import refloss
from refloss import parallel
from refloss.cases.draws import Limits
from refloss.files import nested
from refloss.golden.drawn import seeded
from refloss.registry import FUNCTIONS
from refloss.testing import assert_matches

LIMITS = Limits(("float64",), max_rows=4, max_classes=5, extreme=False, exact=True)
BAD = {"None": None, "a string": "tea", "a list": [0.5, [1]], "an object": object(), "NaN": float("nan")}
# What a message calls an argument instead: transformers' own words, which its users know.
OTHER_NAMES = {"problem_type": "problem type"}

# Without one of them there is no loss, as in transformers.
LEFT_OUT = {"start_positions", "end_positions"}


class ComputedError(Exception):
    """Something was computed."""


def call_of(function):
    """A call that is right, by its arguments."""
    case = next(iter(seeded(function, LIMITS, 0)))
    return nested(case.inputs) | case.parameters | {"grad_output": case.grad_output}


def what_is_bad():
    """Names of functions and parameters with what cannot be one."""
    for name, function in FUNCTIONS.items():
        flags = {each for each, kind in function.parameters.items() if kind is bool}
        for parameter, of_signature in inspect.signature(function.call).parameters.items():
            for kind, value in BAD.items():
                # None may stand for what is left out, and for False; an array may hold NaN.
                is_default = value is None and (of_signature.default is None or parameter in flags | LEFT_OUT)
                if not is_default and (kind != "NaN" or parameter in function.specification.parameters):
                    yield pytest.param(name, parameter, value, id=f"{name}-{parameter}-{kind}")


def test_an_argument_that_cannot_be_one_is_named(monkeypatch):
    def never(*_):
        raise ComputedError

    monkeypatch.setattr(parallel, "run_blocks", never)
    monkeypatch.setattr(parallel, "each", lambda function, items: [function(item) for item in items])
    calls = {name: call_of(function) for name, function in FUNCTIONS.items()}
    wrong = []
    for name, parameter, value in (each.values for each in what_is_bad()):
        told = ""
        try:
            FUNCTIONS[name].call(**calls[name] | {parameter: value})
        except (TypeError, ValueError) as error:
            told = f"{type(error).__name__}: {error}"
        except ComputedError:
            told = "computed"
        except Exception as error:
            told = f"?? {type(error).__name__}: {error}"
        known = re.search(rf"\b{OTHER_NAMES.get(parameter, parameter)}\b", told)
        if not known or told.startswith("??") or not re.search("expected|which this loss reads", told):
            wrong.append(f"{name}({parameter}={value!r}): {told or 'accepted'}")
    assert not wrong, "\n".join(wrong)


def test_numbers_and_cotangents_say_what_they_should_be():
    calls = {
        "temperature is None; expected a number": {"temperature": None},
        "z_loss is None; expected a number": {"z_loss": None},
        "softcap is 'x' of type str; expected a number": {"softcap": "x"},
        "logit_scale: cannot make an array of object; expected a number": {"logit_scale": object()},
        "grad_output is None; expected a number, or one for each element": {"grad_output": None},
        "grad_output: cannot make an array of list: its parts .* shape; expected real numbers": {"grad_output": [None]},
    }
    for message, options in calls.items():
        with pytest.raises(TypeError, match=message):
            refloss.cross_entropy(np.zeros((2, 3)), [0, 1], **options)


def test_no_class_at_all():
    for target in ([0, 0], 0):
        logits = np.zeros((*np.shape(target), 0))
        with pytest.raises(ValueError, match=r"= 0 is no class, for the axis of classes has size 0"):
            refloss.cross_entropy(logits, target)
    with pytest.raises(ValueError, match=r"index\[0\] = 0 names one of a kind of which there are none"):
        refloss.selected_log_probs(np.zeros((2, 0)), [0, 0])
    assert np.isnan(refloss.cross_entropy(np.zeros((2, 0)), [-100, -100]).loss)


@pytest.mark.parametrize("dtype", ["int2", "uint2", "int4", "uint4"])
def test_integers_of_few_bits(dtype):
    few = np.array([0, 1, 1, 0]).astype(getattr(ml_dtypes, dtype))
    whole, logits = few.astype(np.int64), np.eye(4, 5)
    assert refloss.cross_entropy(logits, few).loss == refloss.cross_entropy(logits, whole).loss
    assert refloss.poisson_nll(logits[:, 0], few).loss == refloss.poisson_nll(logits[:, 0], whole).loss
    assert refloss.cosine_embedding(logits[:1], logits[:1], few[1:2]).loss < 1e-11


@pytest.mark.parametrize("dtype", [np.float32, np.dtype("float32"), "float32", ml_dtypes.bfloat16])
def test_a_dtype_may_be_one_or_its_name(dtype):
    x, w, labels = np.eye(4, 3) / 3, np.eye(5, 3), [0, 1, 2, 3]
    name = np.dtype(dtype).name
    ours, named = (refloss.linear_cross_entropy(x, w, labels, logits_dtype=each) for each in (dtype, name))
    assert ours.loss == named.loss
    assert refloss.mse(x, x, grad_dtype=dtype).grads["input"].dtype == np.dtype(dtype)
    assert assert_matches(ours, loss=np.asarray(ours.loss), compute_dtype=dtype).passed
    with pytest.raises(ValueError, match="logits_dtype is 'tea'; expected one of 'bfloat16', 'float16', 'float32'"):
        refloss.linear_cross_entropy(x, w, labels, logits_dtype="tea")
    with pytest.raises(TypeError, match="compute_dtype is 3; expected one of float64"):
        assert_matches(ours, loss=ours.loss, compute_dtype=3)


@pytest.mark.parametrize("name", ["cross_entropy", "linear_cross_entropy", "ctc", "rnnt", "tdt"])
def test_how_much_there_is_to_do_is_known_from_the_start(name):
    told = []
    with parallel.progress(lambda *numbers: told.append(numbers)):
        FUNCTIONS[name].call(**call_of(FUNCTIONS[name]))
    done, totals = zip(*told, strict=True)
    assert told[0] == (0, totals[0])
    assert set(totals) == {totals[0]}
    assert sum(done) == totals[0]
    assert done.count(0) == 1
