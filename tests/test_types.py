"""What type checkers know of the public functions, and what they reject."""

import inspect
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import refloss
from refloss.registry import FUNCTIONS
from tests import typed_consumer
from tests.tables import own_functions

ROOT = Path(__file__).parents[1]
CONSUMER = Path(typed_consumer.__file__)
# With mypy's word for what is wrong.
WRONG = [
    ("refloss.causal_ml(X, Y)", "attr-defined"),
    ("refloss.importlib", "attr-defined"),
    ("refloss.testing.judge", "attr-defined"),
    ('refloss.causal_lm(X, Y, grad_output="two")', "arg-type"),
    ('refloss.causal_lm(X, Y, grad_output="1 2".split())', "arg-type"),
    ('refloss.causal_lm("logits", Y)', "arg-type"),
    ('refloss.causal_lm(X, Y, backend="gpu")', "arg-type"),
    ("refloss.causal_lm(X, Y, ignore_index=None)", "arg-type"),
    ("refloss.causal_lm(X, Y, ignored_index=-1)", "call-arg"),
    ("refloss.causal_lm(X)", "call-arg"),
    ("refloss.causal_lm(X, Y, num_items_in_batch=[3])", "arg-type"),
    ('refloss.mse(X, X, reduction="avg")', "arg-type"),
    ('refloss.mse(X, X, grad_output={"loss": 1.0})', "arg-type"),
    ("refloss.mse(X, X, out=[0.0])", "arg-type"),
    ("refloss.mse(X, b'bytes')", "arg-type"),
    ("refloss.mse(X, {0: 1.0})", "arg-type"),
    ("refloss.mse(X, 1j)", "arg-type"),
    ('refloss.kl_div(X, X, reduction="batch")', "arg-type"),
    ('refloss.dice(X, X, reduction="mean")', "arg-type"),
    ('refloss.preference_loss(X, X, kind="dpo")', "arg-type"),
    ('refloss.policy_loss(X, X, X, kl="k4")', "arg-type"),
    ("refloss.object_detection(X, X, X, {})", "arg-type"),
    ('refloss.object_detection(X, [], X, {}, assignment="best")', "arg-type"),
    ("refloss.mse(X, X).losses", "attr-defined"),
    ("refloss.mse(X, X).loss.shapes", "union-attr"),
    ('refloss.mse(X, X).grads["input"].shapes', "union-attr"),
    ("refloss.mse(X, X).grads[0]", "index"),
]
HEADER = ["import numpy as np", "import refloss", "X, Y = np.zeros((1, 2, 3)), np.zeros((1, 2), int)"]
LINES = [*HEADER, *(line for line, _ in WRONG)]
# A checker looks for no others; a dtype may be given in many more ways.
NO_WORDS = {"logits_dtype"}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What mypy tells of lines that are wrong, by their numbers, and of others, by their files; one run for all."""
    wrong = tmp_path_factory.mktemp("types") / "wrong.py"
    wrong.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    # As for a package that is installed: its own files are read, and not told of.
    settings = wrong.with_name("mypy.ini")
    settings.write_text("[mypy]\nstrict = true\nfollow_imports = silent\n", encoding="utf-8")
    cache = ROOT / ".mypy_cache" / "consumer"  # apart from that of the package itself, which has other settings
    command = [sys.executable, "-m", "mypy", f"--config-file={settings}", f"--cache-dir={cache}", "--no-pretty"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    options = {"capture_output": True, "text": True, "cwd": wrong.parent, "env": environment}
    run = subprocess.run([*command, str(CONSUMER), str(wrong)], check=False, **options)
    assert run.returncode == 1, run.stdout + run.stderr
    of_lines, others = {}, []
    for line in run.stdout.splitlines():
        if line.startswith(f"{wrong.name}:") and ": error: " in line:
            of_lines.setdefault(int(line.split(":")[1]), []).append(line.rsplit("[", 1)[-1].rstrip("]"))
        elif ": error: " in line:
            others.append(line)
    return of_lines, others


def test_a_consumer_is_clean_under_strict(told):
    of_lines, others = told
    assert others == []
    assert min(of_lines) > len(HEADER)


@pytest.mark.parametrize(("line", "code"), WRONG)
def test_what_is_wrong_is_rejected(told, line, code):
    assert told[0].get(LINES.index(line) + 1) == [code]


def test_what_the_consumer_was_promised_holds():
    typed_consumer.main()


def hints(function):
    """The types of a function's arguments, by name."""
    found = typing.get_type_hints(function.call)
    return {name: found[name] for name in inspect.signature(function.call).parameters}


def words(hint):
    """All that a type allows, if it allows some words."""
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    return set().union(*map(words, typing.get_args(hint)))


@pytest.mark.parametrize("name", own_functions())
def test_every_argument_has_a_type_and_words_are_those_of_the_specification(name):
    function = FUNCTIONS[name]
    types = hints(function)
    assert typing.Any not in types.values()
    for argument, parameter in function.specification.parameters.items():
        allowed = set(parameter.words or parameter.values) if parameter.kind is str else set()
        assert words(types[argument]) == (allowed if argument not in NO_WORDS else set()), argument


def test_types_can_be_read_at_run_time():
    public = [getattr(refloss, name) for name in refloss.__all__]
    functions = [each for each in public if inspect.isfunction(each) or inspect.isclass(each)]
    assert {refloss.shards, refloss.LossResult} < set(functions)
    for each in functions:
        assert typing.get_type_hints(each)


def test_the_package_shows_its_public_face():
    assert set(dir(refloss)) == {*refloss.__all__, "__version__", "testing", "typing"}
    assert refloss.typing.Reduction == typing.Literal["mean", "sum", "none"]
