"""What a result keeps: intermediates that are computed when asked for, copies and pickles."""

import copy
import pickle

import numpy as np
import pytest

import refloss
from refloss.result import Intermediates, LossResult


@pytest.fixture
def made():
    """The names of what was computed."""
    return []


@pytest.fixture
def values(made):
    """One value that is there and two that are computed when asked for."""
    return Intermediates(
        {"lse": 1.0}, losses=lambda: made.append("losses") or 2.0, margin=lambda: made.append("margin") or 3.0
    )


NAMES = ["lse", "losses", "margin"]


def test_names_are_listed_without_computing_anything(values, made):
    assert list(values) == list(values.keys()) == NAMES
    assert len(values) == 3
    assert all(name in values for name in NAMES)
    assert "tea" not in values
    assert values.computed() == {"lse": 1.0}
    assert type(values.computed()) is dict
    assert set(values.later) == {"losses", "margin"}
    assert made == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda values: values["losses"],
        lambda values: values.get("losses"),
        lambda values: dict(values)["losses"],
        lambda values: {**values}["losses"],
        lambda values: dict(values.items())["losses"],
        lambda values: list(values.values())[1],
        lambda values: values.pop("losses"),
        lambda values: (values | {"more": 1.0})["losses"],
        lambda values: ({"more": 1.0} | values)["losses"],
        lambda values: Intermediates(values)["losses"],
    ],
)
def test_what_is_asked_for_is_computed(values, made, ask):
    assert ask(values) == 2.0
    assert made.count("losses") == 1


def test_a_value_is_computed_once_and_only_what_is_asked_for(values, made):
    assert values["losses"] == values.get("losses") == 2.0
    assert made == ["losses"]
    assert values.computed() == {"lse": 1.0, "losses": 2.0}
    assert list(values) == NAMES
    assert values.get("tea") is None
    assert values.get("tea", 5) == 5
    with pytest.raises(KeyError, match="tea"):
        values["tea"]


def test_asking_while_iterating(values):
    assert [values[name] for name in values] == [1.0, 2.0, 3.0]
    assert [values[name] for name in reversed(list(values))] == [3.0, 2.0, 1.0]


def test_printing_computes_nothing(values, made):
    expected = "{'lse': 1.0, 'losses': <computed when asked for>, 'margin': <computed when asked for>}"
    assert repr(values) == str(values) == expected
    assert f"intermediates={expected}" in repr(LossResult(loss=1.0, intermediates=values))
    assert made == []
    assert repr(Intermediates({"lse": 1.0})) == "{'lse': 1.0}"
    result = refloss.cross_entropy(np.zeros((2, 3)), [0, 1])
    assert "'probabilities': <computed when asked for>" in repr(result)
    assert set(result.intermediates.later) == {"log_probabilities", "probabilities"}


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        Intermediates.copy,
        lambda values: values | {},
        lambda values: {} | values,
        Intermediates,
        lambda values: copy.deepcopy(LossResult(loss=1.0, intermediates=values)).intermediates,
        lambda values: copy.copy(LossResult(loss=1.0, intermediates=values)).intermediates,
        lambda values: values.renamed(),
    ],
)
def test_a_copy_has_what_is_computed_later(values, made, copied):
    another = copied(values)
    assert isinstance(another, Intermediates)
    assert (list(another), made) == (NAMES, [])
    assert another["losses"] == 2.0
    assert made == ["losses"]


def test_a_copy_is_a_thing_of_its_own(values):
    for another in (copy.copy(values), copy.deepcopy(values)):
        del another["lse"], another["losses"]
        another["more"] = 1.0
        assert set(another) == {"margin", "more"}
        assert list(values) == NAMES
    array = Intermediates({"lse": np.zeros(2)})
    assert copy.copy(array)["lse"] is array["lse"]
    assert copy.deepcopy(array)["lse"] is not array["lse"]


def test_a_pickle_says_what_it_lacks(values, made):
    assert values["losses"] == 2.0
    another = pickle.loads(pickle.dumps(values))
    assert isinstance(another, Intermediates)
    assert another == {"lse": 1.0, "losses": 2.0}
    assert "margin" not in another
    assert another.get("margin", 5) == 5
    for each in (another, copy.deepcopy(another), another | {}, pickle.loads(pickle.dumps(another))):
        with pytest.raises(KeyError, match="margin is computed when it is asked for: a pickle lacks it"):
            each["margin"]
    another["margin"] = 4.0
    assert another["margin"] == 4.0
    assert made == ["losses"]


def test_a_pickled_result_has_no_probabilities():
    result = refloss.bce_with_logits([0.5], [1.0])
    another = pickle.loads(pickle.dumps(result))
    assert another.grads == result.grads
    with pytest.raises(KeyError, match="probabilities is computed when it is asked for: a pickle lacks it"):
        another.intermediates["probabilities"]
    assert copy.deepcopy(result).intermediates["probabilities"] == result.intermediates["probabilities"]


def test_renamed_values_are_computed_once_for_both(values, made):
    renamed = values.renamed("start_", "_0")
    assert (list(renamed), made) == (["start_lse_0", "start_losses_0", "start_margin_0"], [])
    assert values["losses"] == renamed["start_losses_0"] == 2.0
    assert made == ["losses"]


def test_taking_over_the_values_of_others(values, made):
    own = Intermediates({"losses": 9.0, "own": 8.0}, lse=lambda: made.append("lse"))
    own.update(values)
    assert (set(own), made) == ({"own", *NAMES}, [])
    assert (own["lse"], own["losses"], own["own"]) == (1.0, 2.0, 8.0)
    own.update({"margin": 7.0}, tea=1.0)
    assert (own["margin"], own["tea"], made) == (7.0, 1.0, ["losses"])


def test_values_are_replaced_and_removed_without_computing_them(values, made):
    values["losses"] = 9.0
    assert values.computed() == {"lse": 1.0, "losses": 9.0}
    del values["margin"]
    assert list(values) == ["lse", "losses"]
    with pytest.raises(KeyError, match="margin"):
        del values["margin"]
    another = Intermediates(later=lambda: made.append("later"))
    another.clear()
    assert (list(another), len(another), made) == ([], 0, [])


def test_what_could_not_be_computed_can_be_asked_for_again():
    memory = [False]

    def losses():
        if not memory[0]:
            raise MemoryError
        return 2.0

    values = Intermediates(losses=losses)
    with pytest.raises(MemoryError):
        values["losses"]
    memory[0] = True
    assert values["losses"] == 2.0
