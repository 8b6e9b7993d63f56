"""Written files are fresh, and the stub says what the package has."""

import ast
import importlib

import pytest

import refloss
from refloss.registry import FUNCTIONS
from tests import tables


@pytest.mark.parametrize("path", tables.files(), ids=lambda path: path.name)
def test_a_written_file_is_fresh(path):
    assert path.read_text(encoding="utf-8") == tables.files()[path], "python -m tests.tables writes it anew"


def test_the_stub_has_the_names_of_the_package():
    imported = {
        alias.name: node.module
        for node in ast.parse(tables.STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported.keys() == {*refloss.__all__, *refloss._MODULES}
    for name in refloss.__all__:
        # Not the same object where another test has loaded the module again.
        assert imported[name] == refloss._HOMES[name]
        assert hasattr(importlib.import_module(imported[name]), name)


def test_every_function_has_all_its_facts():
    for name, function in tables.own_functions().items():
        assert function.specification.follows, name
        assert function.summary.endswith("."), name
    keys = [key for function in FUNCTIONS.values() for key in function.specification.keys]
    assert len(keys) == len(set(keys)) == 31
    assert set(keys) == set(refloss.LOSS_MAPPING)
