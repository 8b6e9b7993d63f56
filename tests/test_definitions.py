"""refloss list --json: every function, as its specification, its signature and its cases have it."""

import inspect
import json
import re

import jsonschema
import numpy as np
import pytest

import refloss
from refloss import configuration, definitions
from refloss.golden import corpus, store
from refloss.homes import homes
from refloss.options import Options
from refloss.registry import FUNCTIONS
from refloss.specification import Elementwise, values
from tests.test_cli import run  # noqa: F401


@pytest.fixture(scope="module")
def told():
    return {each["name"]: each for each in definitions.definitions()["functions"]}


def test_the_command_prints_what_the_schema_describes(run):  # noqa: F811
    status, out, err = run("list", "--json")
    assert (status, err) == (0, "")
    printed, schema = json.loads(out), json.loads(definitions.SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(printed, schema, jsonschema.Draft202012Validator)
    assert (printed["format"], printed["refloss"]) == (1, refloss.__version__)
    assert {each["name"] for each in printed["functions"]} == set(FUNCTIONS)
    assert {key for each in printed["functions"] for key in each["loss_mapping"]} == set(refloss.LOSS_MAPPING)
    for broken in (lambda each: each.pop("held_constant"), lambda each: each["arguments"][0].pop("dtypes")):
        changed = json.loads(out)
        broken(changed["functions"][0])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", homes())
def test_every_argument_is_there_with_the_signature_s_default(told, name):
    signature, each = inspect.signature(getattr(refloss, name)).parameters, told[name]
    arguments = {argument["name"]: argument for argument in each["arguments"]}
    parameters = {parameter["name"]: parameter for parameter in each["parameters"]}
    assert each["signature"] == list(signature)
    assert {*arguments, *parameters, *each["options"]} == set(signature)
    assert set(each["options"]) <= {*Options._fields, "assignment"}
    for key, parameter in (parameters | arguments).items():
        assert parameter["keyword_only"] == (signature[key].kind is inspect.Parameter.KEYWORD_ONLY)
    for key, parameter in parameters.items():
        assert parameter["required"] == (signature[key].default is inspect.Parameter.empty)
        assert parameter["required"] or parameter["default"] == signature[key].default
        assert type(parameter.get("default")) is type(None if parameter["required"] else signature[key].default)
    for argument in arguments.values():
        assert argument["required"] or signature[argument["name"]].default is None
    assert each["held_constant"]
    assert each["summary"]


def named_sizes(shape, symbols, sizes):
    """What the names of axes are, if a shape fits them: sizes with those of this shape, or None."""
    before, dots, after = symbols, 0, []
    if "..." in symbols:
        place = symbols.index("...")
        before, after = symbols[:place], symbols[place + 1 :]
        dots = len(shape) - len(before) - len(after)
    if dots < 0 or len(before) + dots + len(after) != len(shape):
        return None
    pairs = [*zip(before, shape, strict=False), *zip(after, shape[len(shape) - len(after) :], strict=True)]
    if "..." in symbols:
        pairs.append(("...", shape[len(before) : len(before) + dots]))
    sizes = dict(sizes)
    for symbol, size in pairs:
        wanted = int(symbol) if str(symbol).isdecimal() else sizes.setdefault(symbol, size)
        if wanted != size:
            return None
    return sizes


def fitting(arrays, arguments, sizes):
    """Sizes of all axes, if every array has one of its argument's shapes."""
    if not arrays:
        return sizes
    (name, array), *others = arrays
    for symbols in arguments[name]["shapes"]:
        fitted = named_sizes(array.shape, symbols, sizes)
        result = None if fitted is None else fitting(others, arguments, fitted)
        if result is not None:
            return result
    return None


def test_named_sizes_finds_what_does_not_fit():
    assert named_sizes((2, 3, 4), ["B", "...", "4"], {}) == {"B": 2, "...": (3,)}
    assert named_sizes((2, 3, 5), ["B", "...", "4"], {}) is None
    assert named_sizes((2, 3), ["B", "S"], {"B": 3}) is None
    assert named_sizes((), ["B", "..."], {}) is None


def parts_fit(value, structure):
    """Whether nested arrays are what a structure says."""
    if "list" in structure:
        return isinstance(value, list) and all(parts_fit(part, structure["list"]) for part in value)
    if "mapping" in structure:
        return set(value) == set(structure["mapping"]) and all(
            parts_fit(part, structure["mapping"][key]) for key, part in value.items()
        )
    array = np.asarray(value)
    return array.dtype.name in structure["dtypes"] and named_sizes(array.shape, structure["shape"], {}) is not None


@pytest.mark.parametrize("name", homes())
def test_golden_cases_have_the_shapes_and_dtypes_that_are_told(told, name):
    arguments = {argument["name"]: argument for argument in told[name]["arguments"]}
    parameters = {parameter["name"]: parameter for parameter in told[name]["parameters"]}
    for case in corpus.cases_of(name):
        given = store.nested(case.inputs)
        arrays = [(key, value) for key, value in given.items() if "shapes" in arguments[key]]
        assert all(value.dtype.name in arguments[key]["dtypes"] for key, value in arrays), case.id
        whole = [(key, value) for key, value in arrays if not arguments[key]["broadcast"]]
        sizes = fitting(whole, arguments, {})
        assert sizes is not None, (case.id, {key: value.shape for key, value in whole})
        assert all(
            parts_fit(value, arguments[key]["structure"]) for key, value in given.items() if key not in dict(arrays)
        ), case.id
        for key, value in case.parameters.items():
            assert parameters[key]["in_golden_files"]
            assert value in parameters[key].get("words", [value])
        shapes = told[name]["outputs"]["loss"]["shapes_without_reduction"]
        reduces = FUNCTIONS[name].specification.reduces
        words = [word for key in ("reduction", "aggregation") for word in parameters.get(key, {}).get("words", [])]
        assert bool(shapes) == (not reduces or "none" in words)
        if isinstance(case.grad_output, np.ndarray) and case.grad_output.ndim:
            assert any(named_sizes(case.grad_output.shape, shape, sizes) is not None for shape in shapes), case.id


class Read(dict[str, object]):
    """A configuration that knows what was read of it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.names = set()

    def get(self, key, default=None):
        self.names.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("name", [name for name in homes() if "config" in FUNCTIONS[name].specification.parameters])
def test_of_a_configuration_is_read_what_is_told(told, name):
    """By its case with everything; a case with less reads less."""
    known = {each["name"]: each for each in told[name]["parameters"]}["config"]["keys"]
    if not FUNCTIONS[name].specification.parameters["config"].on_command_line:
        source = inspect.getsource(inspect.getmodule(inspect.unwrap(getattr(refloss, name))))
        assert (
            set(re.findall(r'configuration\.read\(config, "(\w+)"', source)) == set(known) <= {*told[name]["signature"]}
        )
        return
    cases = [case for case in corpus.cases_of(name) if case.parameters["config"].get("auxiliary_loss", True)]
    case = max(cases, key=lambda case: len(case.inputs))
    config = Read(case.parameters["config"] | {"use_focal_loss": True})
    assert configuration.read(config, "num_labels") == config["num_labels"]
    config.names.clear()
    result = store.evaluate(case._replace(parameters={**case.parameters, "config": config}))
    assert config.names == set(known)
    suffixes = sorted({layer.suffix for layer in result.layers}, key=len, reverse=True)

    def of_layers(names):
        return {next(name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)) for name in names}

    outputs = told[name]["outputs"]
    assert outputs["layered"]
    assert of_layers(result.components) == set(outputs["components"])
    assert of_layers(result.intermediates) <= set(outputs["intermediates"])
    assert set(result.grads) <= set(outputs["grads"])


@pytest.mark.parametrize("name", [name for name in homes() if not FUNCTIONS[name].specification.layered])
def test_a_result_has_what_is_told(told, name):
    outputs, unseen = told[name]["outputs"], None
    # The fullest first; what no case has leaves none.
    cases = sorted(corpus.cases_of(name), key=lambda case: (len(case.inputs), len(case.parameters)))
    while unseen is None or unseen:
        case = cases.pop()
        result = store.evaluate(case)
        # A z-loss of 0 is no part.
        is_whole = "z_loss" in outputs["components"] and not case.parameters.get("z_loss")
        expected = set() if is_whole else set(outputs["components"])
        assert (set(result.components), result.loss.dtype.name) == (expected, "float64")
        assert set(result.grads) <= set(outputs["grads"])
        assert set(result.intermediates) <= set(outputs["intermediates"])
        unseen = (set(outputs["intermediates"]) if unseen is None else unseen) - set(result.intermediates)


def test_a_loss_of_others_is_told_as_well():
    """With less: what its docstring does not say is not there."""

    def plain(input, target, *, reduction="mean"):  # noqa: A002
        """Something."""

    specification = Elementwise(
        arguments={"input": values(), "target": values()}, magnitudes=lambda *_: None, follows="nothing"
    )
    each = definitions.definition(FUNCTIONS["mse"]._replace(name="plain", call=plain, specification=specification))
    assert (each["held_constant"], each["summary"], each["loss_mapping"]) == ("", "Something.", [])
    assert [argument["shapes"] for argument in each["arguments"]] == [[["..."]], [["..."]]]
