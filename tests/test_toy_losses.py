"""A loss that is defined outside of refloss, in one file, has everything that refloss's own have."""

import importlib
import sys

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from safetensors.numpy import save_file

from refloss import cli, registry
from refloss.cases.source import DTYPES
from refloss.golden import store
from refloss.golden.corpus import corpus
from refloss.registry import FUNCTIONS
from refloss.testing import check, check_properties, question
from refloss.testing.judging.judge import judge
from refloss.testing.mistakes.mutants import mutated
from refloss.testing.strategies import inputs

NAMES = ("log_cosh", "z_loss")


@pytest.fixture(scope="module", autouse=True)
def toys():
    """The losses are registered while this file is run, so that no other test knows of them."""
    before = dict(registry._registered)
    module = importlib.import_module("tests.toy_losses")
    for name in NAMES:
        # Imported before, by this process, they have to be registered again.
        if name not in REGISTERED:
            REGISTERED[name] = FUNCTIONS[name]
        registry.register(REGISTERED[name])
    yield module
    registry._registered.clear()
    registry._registered.update(before)


REGISTERED: dict[str, registry.Function] = {}


def oracle(name):
    def fn(inputs, parameters, cotangent):
        result = FUNCTIONS[name].call(**inputs, **parameters, grad_output=cotangent)
        return result.loss, result.grads

    return fn


def test_log_cosh_is_what_it_should_be(toys):
    x, t = np.random.default_rng(0).standard_normal((2, 50)) * 3
    result = toys.log_cosh(x, t, reduction="none", grad_output=-1 / 3)
    with mpmath.workprec(200):
        distances = [mpmath.mpf(a) - b for a, b in zip(x, t, strict=True)]
        wanted = [(mpmath.log(mpmath.cosh(d)), -mpmath.tanh(d) / 3) for d in distances]
    assert np.allclose(result.loss, [float(value) for value, _ in wanted], rtol=1e-12)
    assert np.allclose(result.grads["input"], [float(slope) for _, slope in wanted], rtol=1e-12)
    assert np.array_equal(result.grads["target"], -result.grads["input"])


def test_z_loss_is_what_it_should_be(toys):
    generator = np.random.default_rng(1)
    x, y, weight = generator.standard_normal((20, 7)) * 4, generator.integers(7, size=20), generator.uniform(0.5, 2, 7)
    result = toys.z_loss(x, y, weight, z_weight=0.25, reduction="none", grad_output=-1 / 3)
    for i, label in enumerate(y):
        with mpmath.workprec(200):
            terms = [mpmath.exp(value) for value in x[i]]
            lse = mpmath.log(sum(terms))
            value = weight[label] * (lse - x[i, label] + lse**2 / 4)
            slopes = [-weight[label] * (e / sum(terms) * (1 + lse / 2) - (j == label)) / 3 for j, e in enumerate(terms)]
        assert float(result.loss[i]) == pytest.approx(float(value), rel=1e-14)
        assert np.allclose(result.grads["logits"][i], [float(slope) for slope in slopes], rtol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_golden_cases(name, tmp_path):
    formats = {case.inputs[FUNCTIONS[name].required[0]].dtype.name for case in corpus({name})}
    assert formats == set(DTYPES)
    assert store.write(tmp_path, {name}) == len(corpus({name})) > 12
    assert all(fault is None for _, fault in store.check(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_every_mutant_is_rejected(name):
    rejected = set()
    for case in corpus({name}):
        asked = question(case)
        right = {key: value for key, value in asked.expected.items() if not key.startswith("intermediate.")}
        for mutant, answers in mutated(asked).items():
            wrong = {key: value for key, value in answers.items() if not isinstance(value, str)}
            verdicts = judge(asked, right | wrong).tensors
            assert {verdict.name for verdict in verdicts if not verdict.passed} == wrong.keys(), (case.id, mutant)
            rejected |= {mutant} if wrong else set()
    assert {"1 % too large", "one element wrong", "negated", "upstream gradient ignored"} <= rejected


@pytest.mark.parametrize("name", NAMES)
def test_strategies(name):
    @settings(max_examples=30, derandomize=True, database=None, deadline=None)
    @given(inputs(name))
    def accepted(case):
        store.evaluate(case)

    accepted()


@pytest.mark.parametrize("name", NAMES)
def test_metamorphic_checks(name):
    held = check_properties(oracle(name), name, seeds=range(2))
    assert {"linear in the upstream gradient", "permuted rows", "batch = loop", "losses not negative"} <= set(held)
    assert ("padding" in held) == ("permuted classes" in held) == (name == "z_loss")
    assert "shift" not in held


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_judged_and_its_mistake_told(name):
    assert check(oracle(name), function=name).passed
    with pytest.raises(AssertionError, match="upstream gradient"):
        check(lambda inputs, parameters, cotangent: oracle(name)(inputs, parameters, 1.0), function=name)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line(name, capsys, monkeypatch, tmp_path):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["refloss", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return capsys.readouterr().out

    assert any(line.startswith(name) for line in run("list").splitlines())
    case = corpus({name})[0]
    arrays = {f"input.{key}": np.ascontiguousarray(value) for key, value in case.inputs.items()}
    save_file(arrays, tmp_path / "case.safetensors")
    loss = float(store.evaluate(case._replace(parameters={})).loss)
    assert repr(loss) in run("compute", name, tmp_path / "case.safetensors")
